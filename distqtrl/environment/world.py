"""One environment with its agents, Gymnasium's or PettingZoo's, behind one protocol."""

from typing import Any, Protocol

from distqtrl.config import stages as configuration
from distqtrl.defaults import Defaults
from distqtrl.environment import pictures
from distqtrl.environment.failures import failure
from distqtrl.environment.parallel import Parallel, check_id, is_parallel
from distqtrl.environment.pictures import Picture
from distqtrl.environment.single import Single
from distqtrl.environment.spaces import Floats, Spaces
from distqtrl.errors import UserError


class World(Protocol):
    """One environment with G agents; what is said of an agent without a name, Gymnasium's, is said without a list."""

    agents: tuple[str, ...]
    spaces: tuple[Spaces, ...]
    max_steps: int | None  # its time limit, as far as it is known
    metadata: dict[str, Any]  # what it says of itself: render_modes, render_fps

    def reset(self, seed: int) -> tuple[Any, Any]:
        """Observations, float32 of each agent's width, and which agents act."""

    def step(self, actions_G: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Observations (final for an agent that ended), rewards, terminated, truncated, and who acts in the next step.

        The episode is over when nobody does. Actions are in the environment's units.
        """

    def state(self) -> Floats | None:
        """What a centralised critic sees; none where there is nothing but the observations."""

    def render(self) -> Picture:
        """A picture of the environment, where it was made to be drawn; raises UserError where it does not draw."""

    def close(self) -> None:
        """Release its resources."""


def make(config: configuration.Environment, render: bool = False) -> World:
    """One environment; raises UserError for an unknown id, arguments or spaces, and to render what draws nothing."""
    check_id(config.id)
    defaults = Defaults()
    kind: type[Parallel] | type[Single] = Parallel if is_parallel(config.id) else Single
    try:
        if render:  # asked for pictures, one that draws none would fail or warn in a way of its own
            world = kind(config)
            world.close()
            pictures.check(world.metadata, config.id)
        return kind(config, render)
    except UserError:
        raise
    except BaseException as error:
        raise failure(error, f"{config.id} cannot be made") or error from None
    finally:
        defaults.again()
