"""Has llama.cpp's own converter write a checkpoint as GGUF, whatever tokenizer it has.

    pip download --no-deps --no-binary :all: llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    python benchmarks/tools/convert_checkpoint.py llama_cpp_python-*/vendor/llama.cpp DIRECTORY {MOSTLY_Q8_0|ALL_F32|...} OUT.gguf

Without blocks that predict tokens after the next one. Needs what the converter does (sentencepiece).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import transformers


def use_converter(llama_cpp: Path) -> None:
    """Make the converter in llama.cpp's sources importable, and quiet. SystemExit where there is none."""
    if not (llama_cpp / "conversion").is_dir():
        raise SystemExit(
            f"There is no converter in {llama_cpp}.\nGive a folder with conversion/ and gguf-py/."
        )
    sys.path[:0] = [str(llama_cpp / "gguf-py"), str(llama_cpp)]
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    fast = transformers.PreTrainedTokenizerFast
    transformers.AutoTokenizer.from_pretrained = lambda directory, **_: fast.from_pretrained(directory)


def convert_checkpoint(directory: Path, path: Path, kind: str, *, ahead: bool) -> None:
    """Have the converter write the checkpoint in `directory` to `path`, matrices in `kind`, one of gguf.LlamaFileType. ahead:
    with the blocks that predict tokens after the next one."""
    import conversion
    import gguf

    config = json.loads((directory / "config.json").read_text())
    conversion.ModelBase.load_hparams = staticmethod(lambda *_, **__: json.loads(json.dumps(config)))
    architecture = conversion.get_model_architecture(config, conversion.ModelType.TEXT)
    cls = conversion.get_model_class(architecture)
    conversion.TextModel.get_vocab_base_pre = lambda self, tokenizer: (
        "gpt-2"
    )  # else it asks for a known tokenizer
    cls.set_vocab = lambda self: self._set_vocab_gpt2()
    cls.no_mtp = not ahead
    cls(directory, gguf.LlamaFileType[kind], path).write()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("llama_cpp", type=Path, help="its sources: a folder with conversion/ and gguf-py/")
    parser.add_argument("directory", type=Path)
    parser.add_argument("kind", help="of the matrices: the name of a gguf.LlamaFileType")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    use_converter(options.llama_cpp)
    convert_checkpoint(options.directory, options.out, options.kind, ahead=False)


if __name__ == "__main__":
    main()
