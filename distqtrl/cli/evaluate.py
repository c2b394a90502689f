"""distqtrl evaluate: greedy episodes of a trained policy."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from distqtrl.allreduce.communicator import Communicator
from distqtrl.cli.arguments import Flags, add_permission, path, whole_number
from distqtrl.cli.output import print_json
from distqtrl.config.stages import Environment
from distqtrl.errors import UserError

TEXT = "Play greedy episodes with a policy file; needs nothing else of the run."
SHARED = False


def add(command: ArgumentParser) -> None:
    """Add the command's flags."""
    command.add_argument("policy", metavar="RUN|POLICY", help="a run directory or a policy.safetensors")
    text = "episodes to play, or questions to ask [100]"
    command.add_argument("--episodes", type=whole_number(1), default=100, metavar="N", help=text)
    text = "seed of the episodes [0]"
    command.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0, metavar="N", help=text)
    text = "cut an episode after this many steps [as at the end of training; 1000 without a time limit]"
    command.add_argument("--max-steps", type=whole_number(1), metavar="N", help=text)
    add_permission(command)
    command.add_argument("--gif", type=path, metavar="FILE.gif", help="also draw the first episode into this file")


def run(args: Namespace, flags: Flags, comm: Communicator) -> int:
    """Play the episodes and print their returns; returns the exit code."""
    from distqtrl.language import adapted

    if (update := adapted.written(Path(args.policy))) is not None:
        return _answer(update, args)
    return _play(args)


def _answer(update: Path, args: Namespace) -> int:
    """Ask a language model, and print what its likeliest answers are worth."""
    from distqtrl.environment import permission
    from distqtrl.environment.rollout import summary
    from distqtrl.language import adapted

    if args.gif is not None or args.max_steps is not None:
        raise UserError(f"{update} is a language model's: --gif and --max-steps are for episodes, leave them out")
    found = adapted.load(update)
    permission.check_task(found.language.task, update, args.import_environment)
    asked = adapted.questions(found.task, "evaluation", 0, range(args.episodes), args.seed)
    rewards, lengths = adapted.answers(found, asked)
    if args.json:
        facts = {"task": found.language.task, "seed": args.seed, "length_mean": lengths.mean()}
        print_json(facts | summary(rewards))
        return 0
    print(
        f"{found.language.task}: reward {rewards.mean():.4f} over {len(rewards)} greedy answers of "
        f"{lengths.mean():.1f} tokens to questions of its tests, seed {args.seed}"
    )
    return 0


def _play(args: Namespace) -> int:
    """Play the episodes and print their returns."""
    from distqtrl.environment import permission
    from distqtrl.environment.rollout import cut, evaluation, summary
    from distqtrl.export import episodes
    from distqtrl.policy import policy_file

    policies = policy_file.team(Path(args.policy))
    environment = Environment(**policies[0].environment)
    permission.check(environment.id, args.policy, args.import_environment)
    episodes.check(policies)
    roles, acts, shown = [policy.agents for policy in policies], [policy.act for policy in policies], None
    most = args.max_steps or policies[0].origin.get("max_steps")
    if args.gif is not None:
        from distqtrl.report import animation

        shown = animation.record(args.gif, environment, args.seed, roles, acts, most)
    found = evaluation(environment, range(args.episodes), args.seed, "evaluation", acts, roles, max_steps=most)
    returns, num_cut = found.returns_EG.mean(1), int(found.cut_E.sum())
    if args.json:
        result = {"environment": environment.id, "seed": args.seed, **summary(returns)}
        result |= {"cut": num_cut, "max_steps": found.max_steps}
        if len(found.agents) > 1:
            result["agents"] = dict(zip(found.agents, found.returns_EG.mean(0).tolist(), strict=True))
        if shown is not None:
            result["gif"] = {"file": str(args.gif), "return": shown}
        print_json(result)
        return 0
    print(
        f"{environment.id}: return {returns.mean():.2f} ± {returns.std():.2f} "
        f"(min {returns.min():.2f}, max {returns.max():.2f}) over {len(returns)} greedy episodes, seed {args.seed}"
    )
    if num_cut:
        print(cut(num_cut, args.episodes, found.max_steps or 0))
    if shown is not None:
        print(f"{args.gif} shows the first of them, return {shown:.2f}")
    return 0
