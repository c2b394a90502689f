"""distqtrl export: a policy as integers, for every target."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from distqtrl.allreduce.communicator import Communicator
from distqtrl.cli.arguments import Flags, add_permission, add_proof, coefficients, path
from distqtrl.cli.output import aside, print_json, say, tell
from distqtrl.errors import UserError
from distqtrl.files.places import quoted

if TYPE_CHECKING:
    from distqtrl.export.options import Options

TEXT = "Write a policy as integers for CPU, GPU and FPGA, with the proof that all of them compute the same."
SHARED = False
EXIT_CODES = (
    "Exit code 0: the folder was written, and nothing in it differs; what could not be checked is printed, and "
    "recorded in manifest.json and README.md. 2: it cannot be done as asked, or something differs; then nothing "
    "was written."
)


def add(command: ArgumentParser) -> None:
    """Add the command's flags."""
    command.epilog = EXIT_CODES
    command.add_argument("policy", metavar="RUN|POLICY", help="a run directory or a policy.safetensors")
    command.add_argument("-o", "--output", type=path, required=True, metavar="DIR", help="a new folder")
    text = "some of c,onnx,cuda,verilog [every target there is]; of a language model merged or adapter [merged]"
    command.add_argument("--target", metavar="LIST", help=text)
    text = "1 to 8 bits: weights and hidden activations, observations, what the head reads [core=4,input=8,output=8]"
    command.add_argument("--bits", metavar="LIST", help=text)
    text = "whether each channel or each tensor has a scale of its own [channel]"
    command.add_argument("--per", choices=("channel", "tensor"), help=text)
    text = "recorded observations (N, O) to calibrate on; without it the policy plays 20 episodes"
    command.add_argument("--calibration", type=path, metavar="FILE.npy", help=text)
    text = "multiply-accumulates per clock of the folded core, such as 32x4 [from the widest layer]"
    command.add_argument("--parallel", metavar="LANESxCOLUMNS", help=text)
    text = "refuse a folded core that does not fit this FPGA, such as xc7a15t"
    command.add_argument("--part", metavar="NAME", help=text)
    text = "also simulate the synthesized netlists, count toggles, place and route for ECP5 (minutes)"
    command.add_argument("--implement", action="store_true", help=text)
    text = "print energy per action from static power and energy per toggle, such as 0.06,2e-13; needs --implement"
    command.add_argument("--energy", metavar="WATTS,JOULES", help=text)
    text = "also measure the joules of an action of the C code on this machine's CPU, where it can be (20 s)"
    command.add_argument("--joules", action="store_true", help=text)
    add_proof(command)
    add_permission(command)


def run(args: Namespace, flags: Flags, comm: Communicator) -> int:
    """Write the folder and print what was proven about it; returns the exit code."""
    from distqtrl.export import folder, readme
    from distqtrl.language import adapted
    from distqtrl.policy import policy_file

    if (update := adapted.written(Path(args.policy))) is not None:
        return _decoder(update, args)
    about = folder.export(policy_file.only(Path(args.policy)), args.output, options(args), aside(args.json))
    if args.json:
        print_json({"folder": str(args.output), **about})
        return 0
    r = about["returns"]
    print(
        f"return {r['float']:.2f} before, {r['integer']:.2f} after, over {r['episodes']} episodes "
        f"{readme.difference(r)}"
    )
    if missing := readme.unproven(about):
        print(f"not checked here: {', '.join(missing)} (README.md there says why)")
    print(f"exported to {args.output}; check it again with: distqtrl verify {quoted(args.output)}")
    return 0


def _decoder(update: Path, args: Namespace) -> int:
    """Write a language model with its update as other programs load it."""
    from distqtrl.errors import lookup
    from distqtrl.language import adapted

    write = lookup("--target of a language model", args.target or "merged", adapted.FORMS)
    found = adapted.load(update)
    write(args.output, found.model, found.factors_F)
    if args.target == "adapter" and found.adapter.precision != "none":
        say(
            f"distqtrl: what was evaluated is this update beside {found.language.base} rounded to "
            f"{found.adapter.precision}; beside the base as it is it is another policy: --target merged is the one"
        )
    tell(args.json, {"folder": str(args.output)}, f"exported to {args.output}")
    return 0


def options(args: Namespace) -> "Options":
    """How to export, as the command line says; raises UserError."""
    from distqtrl.export.options import Options, folding
    from distqtrl.export.targets import TARGETS, named
    from distqtrl.quantize.formats import bits

    if args.energy is not None and not args.implement:
        raise UserError(f"--energy {args.energy}: toggles are counted with --implement only: give both")
    return Options(
        targets=tuple(TARGETS) if args.target is None else named(args.target),
        bits=None if args.bits is None else bits(args.bits),
        per=args.per,
        calibration=args.calibration,
        folding=None if args.parallel is None else folding(args.parallel),
        part=args.part,
        vectors=args.vectors,
        episodes=args.episodes,
        implement=args.implement,
        energy=coefficients(args.energy),
        joules=args.joules,
        imports=args.import_environment,
        limit_s=args.tool_limit,
    )
