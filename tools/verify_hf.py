"""The gate on a checkpoint and a Hugging Face folder that are there already, the same as `octo verify`.

python tools/verify_hf.py CKPT HF_DIR [--skip PART]
"""

import sys

from octo_megatron.lineage.convert_command import convert

if __name__ == "__main__":
    sys.exit(convert(["verify", *sys.argv[1:]]))
