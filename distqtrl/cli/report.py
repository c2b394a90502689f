"""distqtrl report."""

import argparse
import json

from distqtrl.cli.arguments import Flags


def _report_page(args: argparse.Namespace, flags: Flags) -> int:
    from distqtrl.report.html import report

    files = [str(path) for path in report(args.runs, args.output, args.marl_eval)]
    print(json.dumps({"files": files}) if args.json else "\n".join(files))
    return 0
