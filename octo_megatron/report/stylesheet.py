"""The page's CSS, inlined so that the report is one file. Sized for 900 to 1600 px and for A4."""

CSS = """
:root { --ink:#1f2430; --muted:#5d6676; --rule:#e3e6ec; --wash:#f7f8fa; --good:#0a7d60; --bad:#b3400f; }
* { box-sizing:border-box; }
html { -webkit-text-size-adjust:100%; }
body { margin:0; background:#fff; color:var(--ink);
  font:15px/1.55 "Helvetica Neue",Helvetica,Arial,"Liberation Sans",sans-serif; }
main { max-width:1148px; margin:0 auto; padding:44px 24px 72px; }
header { border-bottom:2px solid var(--ink); padding-bottom:22px; margin-bottom:8px; }
.over { font-size:13px; color:var(--muted); margin:0 0 14px; }
.over b { color:var(--ink); }
h1 { font-size:31px; line-height:1.22; letter-spacing:-.012em; font-weight:700; margin:0; max-width:27em;
  text-wrap:balance; }
h2 { font-size:20px; letter-spacing:-.006em; margin:46px 0 6px; }
h3 { font-size:14px; margin:26px 0 6px; }
p, .note { max-width:46em; margin:0 0 12px; }
.note { margin-top:12px; }
.lede { font-size:17px; color:var(--muted); margin:14px 0 0; }
.banner { background:#fff6e9; border-left:4px solid #c97a00; padding:11px 16px; margin:20px 0 0; max-width:none; }
.checks { list-style:none; margin:22px 0 0; padding:0; display:grid; gap:12px;
  grid-template-columns:repeat(auto-fit,minmax(188px,1fr)); }
.checks li { background:var(--wash); border-radius:6px; padding:11px 14px; font-size:13.5px; line-height:1.4; }
.checks b { display:block; font-size:14px; }
.yes b::before { content:"✓\\00a0"; color:var(--good); } .no b::before { content:"✗\\00a0"; color:var(--bad); }
.open b::before { content:"○\\00a0"; color:var(--muted); }
figure { margin:14px 0 0; } figure img, svg.lineage { width:100%; height:auto; display:block; }
svg.lineage { margin-top:14px; font-family:inherit; }
figcaption { color:var(--muted); font-size:13.5px; max-width:56em; margin-top:6px; }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; font-size:13.5px; font-variant-numeric:tabular-nums; margin:12px 0 0; width:100%; }
th, td { text-align:right; padding:6px 12px 6px 0; border-bottom:1px solid var(--rule); white-space:nowrap; }
thead th { white-space:normal; }
th { font-weight:600; color:var(--muted); border-bottom:1.5px solid #b6bcc8; vertical-align:bottom; }
th:first-child, td:first-child, .left { text-align:left; } th:last-child, td:last-child { padding-right:0; }
tbody th { color:var(--ink); border-bottom:1px solid var(--rule); }
table.narrow { width:auto; min-width:420px; }
th.group { text-align:center; border-bottom:1px solid var(--rule); } th.blank { border-bottom:0; }
.best { font-weight:700; } .dim { color:var(--muted); }
.dot { display:inline-block; width:10px; height:10px; border-radius:50%; margin-right:8px; }
.table-note { color:var(--muted); font-size:13px; margin:8px 0 0; max-width:60em; }
.samples { display:grid; grid-template-columns:1fr 1fr; gap:14px; margin:8px 0 0; }
.sample { border:1px solid var(--rule); border-left:4px solid; border-radius:4px; padding:10px 14px; min-width:0;
  break-inside:avoid; }
.sample header { all:unset; display:flex; justify-content:space-between; font-size:12.5px; color:var(--muted); }
.sample pre { font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;
  white-space:pre-wrap; overflow-wrap:anywhere; margin:7px 0 0; }
.sample .prompt { color:var(--muted); }
.right { color:var(--good); font-weight:600; } .wrong { color:var(--bad); font-weight:600; }
code { font:12.5px ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace; }
.config { background:var(--wash); border-radius:6px; padding:16px 18px; overflow-x:auto; columns:2; column-gap:36px;
  font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace; margin:12px 0 0;
  white-space:pre-wrap; overflow-wrap:anywhere; }
.two { display:grid; grid-template-columns:repeat(auto-fit,minmax(400px,1fr)); column-gap:44px; align-items:start; }
footer { margin-top:52px; padding-top:14px; border-top:1px solid var(--rule); color:var(--muted); font-size:13px; }
@page { size:A4; margin:13mm; }
@media print {
  body { font-size:10pt; } main { padding:0; max-width:none; } h1 { font-size:19pt; } h2 { break-after:avoid; }
  figure, svg.lineage, tr, .checks li { break-inside:avoid; } .scroll { overflow:visible; }
  h3, h2 + p { break-after:avoid; } .checks { grid-template-columns:repeat(4,1fr); gap:8px; }
  .two { grid-template-columns:3fr 2fr; column-gap:28px; }
  table { font-size:8.5pt; } th, td { padding-right:6px; }
  * { -webkit-print-color-adjust:exact; print-color-adjust:exact; }
}
"""
