"""distqtrl export."""

import argparse
import json
from pathlib import Path

from distqtrl.cli.arguments import Flags
from distqtrl.cli.output import _aside
from distqtrl.errors import UserError


def _export(args: argparse.Namespace, flags: Flags) -> int:
    from distqtrl.export import folder, readme

    about = folder.export(_policy_path(Path(args.policy)), args.output, folder.options(args), _aside(args.json))
    if args.json:
        print(json.dumps({"folder": str(args.output), **about}))
    else:
        r = about["returns"]
        print(
            f"return {r['float']:.2f} before, {r['integer']:.2f} after, over {r['episodes']} episodes "
            f"{readme.difference(r)}"
        )
        if missing := readme.unproven(about):
            print(f"not checked here: {', '.join(missing)} (README.md there says why)")
        print(f"exported to {args.output}; check it again with: distqtrl verify {args.output}")
    return 0


def _policy_path(path: Path) -> Path:
    """The policy file of a run directory, or the file itself; raises UserError where there are several."""
    from distqtrl.policy import policy_file

    files = policy_file.files(path) if path.is_dir() else [path]
    if len(files) > 1:
        raise UserError(f"{path} has a policy per agent: give one of {', '.join(file.name for file in files)}")
    return files[0]
