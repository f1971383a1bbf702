"""`python -m octo_megatron.convert.command import|export A B`: conversion outside a lineage."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from octo_megatron.config.errors import UserError
from octo_megatron.convert.export_stage import export_folder
from octo_megatron.convert.import_stage import import_folder


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 when the conversion was made and proven, 2 after a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m octo_megatron.convert.command", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    into = verbs.add_parser("import", help="Hugging Face folder -> Megatron checkpoint")
    into.add_argument("hf_dir", type=Path)
    into.add_argument("checkpoint_dir", type=Path)
    into.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    out = verbs.add_parser("export", help="Megatron checkpoint -> Hugging Face folder")
    out.add_argument("checkpoint_dir", type=Path)
    out.add_argument("hf_dir", type=Path)
    out.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    chosen = parser.parse_args(arguments)
    try:
        _convert(chosen)
    except UserError as error:
        print(f"octo: error: {error}", file=sys.stderr)
        return 2
    return 0


def _convert(chosen: argparse.Namespace) -> None:
    if chosen.verb == "import":
        result, target = (
            import_folder(chosen.hf_dir, chosen.checkpoint_dir, chosen.precision),
            chosen.checkpoint_dir,
        )
    else:
        result, target = export_folder(chosen.checkpoint_dir, chosen.hf_dir, chosen.dtype), chosen.hf_dir
    print(
        f"{target}: {result['tensors']} tensors, {result['bytes'] / 1e6:.1f} MB; largest logit difference to "
        f"transformers {result['max_logit_difference']:.2g}; weights {result['weights_sha256'][:16]}"
    )


if __name__ == "__main__":
    sys.exit(main())
