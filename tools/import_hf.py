"""Hugging Face folder -> Megatron checkpoint, the same as `octo import`.

python tools/import_hf.py HF_DIR CKPT [--precision bf16] [--processes 4]
"""

import sys

from octo_megatron.lineage.convert_command import convert

if __name__ == "__main__":
    sys.exit(convert(["import", *sys.argv[1:]]))
