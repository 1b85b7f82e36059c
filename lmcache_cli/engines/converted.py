"""The embedded model, converted once: from GGUF every start would take a quarter of a minute."""

from __future__ import annotations

import io
import os
import shutil
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import mkdtemp

import transformers

from lmcache_cli.home import cache_home


def converted(folder: Path, gguf: str, digest: str) -> tuple[str, dict[str, str]]:
    """Where to load the GGUF model from: (folder, further arguments of ``from_pretrained``).

    The first call writes 540 MB (float32: the weights, exactly) below ``$XDG_CACHE_HOME`` or
    ``~/.cache``; where that can't be written, the GGUF file itself is the answer.
    """
    home = cache_home()
    target = home / f"{Path(gguf).stem}-{digest[:16]}"
    if not target.is_dir():
        try:
            home.mkdir(parents=True, exist_ok=True)
            _convert(folder, gguf, home, target)
        except OSError:
            return str(folder), {"gguf_file": gguf}
    return str(target), {}


def _convert(folder: Path, gguf: str, home: Path, target: Path) -> None:
    """Writes beside the target and renames: another process sees all of it or nothing."""
    extra = {"gguf_file": gguf}
    with redirect_stderr(io.StringIO()):  # the conversion draws a bar of its own
        config = transformers.AutoConfig.from_pretrained(folder, **extra)
        extra["config"] = config
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **extra)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32", **extra)
    # They are plain weights now; with these the model could not be saved.
    del model.config.quantization_config, model.hf_quantizer
    del model.is_quantized, model.quantization_method
    beside = Path(mkdtemp(dir=home))
    try:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        os.replace(beside, target)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        if not target.is_dir():  # else another process was faster
            raise
