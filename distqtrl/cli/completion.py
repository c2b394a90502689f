"""distqtrl completion: words and flags completed by a shell, made of the parser by shtab."""

from argparse import ArgumentParser, Namespace

from distqtrl.allreduce.communicator import Communicator
from distqtrl.cli.arguments import Flags
from distqtrl.cli.output import tell
from distqtrl.errors import UserError

TEXT = "Print the completion of bash, zsh or tcsh; install it with: distqtrl completion bash >FILE."
SHARED = False


def add(command: ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="for which shell")


def run(args: Namespace, flags: Flags, comm: Communicator) -> int:
    """Print the script; raises UserError without shtab."""
    from distqtrl.cli.parser import parser  # which imports the table of commands, and so this file

    try:
        import shtab
    except ImportError:
        raise UserError("completion needs shtab: pip install 'distqtrl[completion]'") from None
    text = shtab.complete(parser(), shell=args.shell)
    tell(args.json, {"text": text}, text)
    return 0
