"""A machine without vLLM, or with another one, hears so in one line."""

import subprocess
import sys

import pytest


def say(code: str) -> str:
    script = f"""
from octo_megatron.config.errors import UserError
try:
    {code}
except UserError as error:
    print("octo: error:", error)
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout


def test_without_vllm():
    out = say("import sys; sys.modules['vllm'] = None; import octo_megatron.engine.vllm_engine")
    assert out.startswith("octo: error: vllm cannot be imported") and "make env" in out
    assert out.count("\n") == 1


@pytest.mark.slow
def test_with_a_vllm_of_another_version():
    pytest.importorskip("vllm", reason="needs vllm: `make env` installs it")
    out = say(
        "import vllm; vllm.__version__ = '0.99.1'; from octo_megatron.engine.vllm_engine import Engine; "
        "Engine.of({}, 'fp32', 8, 1)"
    )
    assert "vllm 0.99.1 is installed; supported are 0.25 to 0.32" in out
