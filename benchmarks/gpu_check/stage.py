"""One stage, as a process: `python stage.py NAME RESULT.json`. What it raises becomes its result."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from pathlib import Path

from result import CannotRun, Result


def main() -> int:
    name, result = sys.argv[1], Result(Path(sys.argv[2]))
    try:
        import_module(f"stages.{name}").run(result)
    except CannotRun as error:
        result.end(cannot=str(error))
    except BaseException as error:
        traceback.print_exc()
        result.end(error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:600])
        return 1
    else:
        result.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
