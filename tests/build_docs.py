"""What `nbdev_docs` does before it calls Quarto, for the checkout it is started in; writes what went wrong to
`docs.json`. Used by test_docs.py."""

import contextlib
import io
import json
import traceback
import warnings
from pathlib import Path

import nbdev.quarto
import nbdev.serve_drv

real, report = nbdev.serve_drv.main, {}


def main(job):
    src = job[0]
    said, err = io.StringIO(), None
    with (warnings.catch_warnings(record=True) as heard, contextlib.redirect_stdout(said),
          contextlib.redirect_stderr(said)):
        warnings.simplefilter("default")
        try: real(job)
        except Exception: err = traceback.format_exc()
    own = [str(w.message) for w in heard if "imports and other code" in str(w.message)]
    report[Path(src).name] = dict(error=err, warnings=own, said=said.getvalue())


if __name__ == "__main__":
    nbdev.serve_drv.main = main
    nbdev.quarto._ensure_quarto = lambda: None
    nbdev.quarto._pre_docs(n_workers=0)
    Path("docs.json").write_text(json.dumps(report), encoding="utf-8")
