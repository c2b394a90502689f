"""distqtrl evaluate."""

import argparse
import json
from pathlib import Path

from distqtrl.cli.arguments import Flags
from distqtrl.config import stages as configuration


def _evaluate(args: argparse.Namespace, flags: Flags) -> int:
    from distqtrl.environment import permission
    from distqtrl.environment.rollout import cut, evaluation, summary
    from distqtrl.export import episodes
    from distqtrl.policy import policy_file

    policies = policy_file.team(Path(args.policy))
    environment = configuration.Environment(**policies[0].environment)
    permission.check(environment.id, args.policy, args.import_environment)
    episodes.check(policies)
    roles, acts, shown = [policy.agents for policy in policies], [policy.act for policy in policies], None
    most = args.max_steps or policies[0].origin.get("max_steps")
    if args.gif is not None:
        from distqtrl.report import animation

        shown = animation.record(args.gif, environment, args.seed, roles, acts, most)
    found = evaluation(environment, range(args.episodes), args.seed, "evaluation", acts, roles, 0, most)
    returns, num_cut = found.returns_EG.mean(1), int(found.cut_E.sum())
    result = {"environment": environment.id, "seed": args.seed, **summary(returns)}
    result |= {"cut": num_cut, "max_steps": found.max_steps}
    if len(found.agents) > 1:
        result["agents"] = dict(zip(found.agents, found.returns_EG.mean(0).tolist(), strict=True))
    if shown is not None:
        result["gif"] = {"file": str(args.gif), "return": shown}
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"{environment.id}: return {returns.mean():.2f} ± {returns.std():.2f} "
            f"(min {returns.min():.2f}, max {returns.max():.2f}) over {len(returns)} greedy episodes, seed {args.seed}"
        )
        if num_cut:
            print(cut(num_cut, args.episodes, found.max_steps or 0))
        if shown is not None:
            print(f"{args.gif} shows the first of them, return {shown:.2f}")
    return 0
