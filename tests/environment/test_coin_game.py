"""CoinGame: PettingZoo's contract, the rules one by one, and how much the game can pay."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqtrl.environment.coin_game import EAST, NORTH, SOUTH, WEST, CoinGame, parallel_env

KINDS = [{}, {"observation": "partial"}, {"size": 5, "num_agents": 4}]
CENTRE = 4  # of a 3 x 3 grid, where cell = 3 x + y


def placed(cells, coin, owner, **settings):
    """A game in a hand-built state."""
    env = CoinGame(**settings)
    env.reset(seed=0)
    env.cells, env.coin, env.owner = list(cells), coin, owner
    return env


def play(env, *actions):
    """One step with an action for each player; returns observations, rewards and infos as lists."""
    observations, rewards, _, _, infos = env.step(dict(zip(env.possible_agents, actions, strict=True)))
    return [[values[agent] for agent in env.possible_agents] for values in (observations, rewards, infos)]


@pytest.mark.filterwarnings("ignore:The old environment creation API:DeprecationWarning")  # by importing the tests
@pytest.mark.parametrize("kind", KINDS)
def test_pettingzoo_contract(kind):
    from pettingzoo.test import parallel_api_test, parallel_seed_test

    parallel_api_test(parallel_env(**kind), num_cycles=200)
    parallel_seed_test(lambda: parallel_env(**kind))


def test_reset_without_a_seed_goes_on_with_the_generator():
    first, second = CoinGame(size=5), CoinGame(size=5)
    starts = [[env.reset(seed=seed)[0]["player_0"] for seed in (7, None, None)] for env in (first, second)]
    np.testing.assert_array_equal(*starts)
    assert len(np.unique(starts[0], axis=0)) == 3


@pytest.mark.parametrize(
    ("owner", "actions", "rewards", "coins", "own_coins"),
    [
        (0, (EAST, SOUTH), [1, 0], [1, 0], [1, 0]),  # its own
        (1, (EAST, SOUTH), [1, -2], [1, 0], [0, 0]),  # the other's
        (1, (NORTH, WEST), [0, 1], [0, 1], [0, 1]),
        (0, (NORTH, WEST), [-2, 1], [0, 1], [0, 0]),
        (0, (EAST, WEST), [-1, 1], [1, 1], [1, 0]),  # both at once
        (1, (EAST, WEST), [1, -1], [1, 1], [0, 1]),
        (0, (NORTH, EAST), [0, 0], [0, 0], [0, 0]),
    ],
)
def test_rewards(owner, actions, rewards, coins, own_coins):
    env = placed([1, 7], CENTRE, owner)  # west and east of the coin
    _, got, infos = play(env, *actions)
    assert got == rewards
    assert [info["coins"] for info in infos] == coins
    assert [info["own_coins"] for info in infos] == own_coins
    assert (env.coin == CENTRE) == (not any(coins))


def test_three_players_on_the_coin_of_one_of_them():
    env = placed([1, 7, 3], CENTRE, 2, num_agents=3)
    assert play(env, EAST, WEST, NORTH)[1] == [1, 1, 1 - 2 - 2]


def test_walls_stop_and_a_coin_under_a_player_is_collected_there():
    env = placed([0, 8], CENTRE, 0)
    for actions in [(SOUTH, NORTH), (WEST, EAST)]:
        play(env, *actions)
        assert env.cells == [0, 8]
    env.coin = 0
    assert play(env, SOUTH, NORTH)[1] == [1, 0]
    moves = {NORTH: 5, SOUTH: 3, WEST: 1, EAST: 7}
    for action, cell in moves.items():
        env.cells[0] = CENTRE
        play(env, action, NORTH)
        assert env.cells[0] == cell


def test_time_limit_truncates_everybody():
    env = CoinGame(max_cycles=7)
    env.reset(seed=0)
    for step in range(1, 8):
        _, _, terminated, truncated, _ = env.step(dict.fromkeys(env.agents, NORTH))
        assert terminated == {"player_0": False, "player_1": False}
        assert truncated == {"player_0": step == 7, "player_1": step == 7}
    assert env.agents == []
    with pytest.raises(RuntimeError, match="call reset"):
        env.step({})


def test_planes():
    env = placed([1, 7], 5, 1)
    full, _, _ = play(env, SOUTH, NORTH)  # to cells 0 and 8
    planes = np.zeros((2, 4, 9), dtype=np.float32)
    planes[0, [0, 1, 3], [0, 8, 5]] = 1
    planes[1, [0, 1, 2], [8, 0, 5]] = 1
    np.testing.assert_array_equal(np.stack(full), planes.reshape(2, 36))
    np.testing.assert_array_equal(env.state(), [*np.eye(9)[0], *np.eye(9)[8], *np.zeros(9), *np.eye(9)[5]])
    assert env.state().dtype == np.float32
    assert env.state_space.contains(env.state())
    partial, _, _ = play(placed([1, 7], 5, 1, observation="partial"), SOUTH, NORTH)
    np.testing.assert_array_equal(np.stack(partial), planes[:, [0, 2, 3]].reshape(2, 27))


@settings(max_examples=40, deadline=None)
@given(size=st.integers(2, 6), num_agents=st.integers(2, 5), seed=st.integers(0, 2**32))
def test_every_spawn_is_legal(size, num_agents, seed):
    env = CoinGame(size=size, num_agents=min(num_agents, size * size - 1))
    observations, _ = env.reset(seed=seed)
    assert len({*env.cells, env.coin}) == len(env.cells) + 1
    rng = np.random.default_rng(seed)
    for _ in range(env.max_cycles):
        assert env.observation_space("player_0").contains(observations["player_0"])
        assert {*env.cells, env.coin} <= set(range(size * size))
        assert env.owner in range(env.num_agents)
        coin = env.coin
        observations, rewards, _, _, _ = env.step({agent: int(rng.integers(4)) for agent in env.agents})
        assert (env.coin != coin) == any(rewards.values())


def test_spawns_are_uniform():
    env, spawns, starts = placed([1, 7], CENTRE, 0, max_cycles=10**9), [], []
    for _ in range(4000):
        env.cells, env.coin = [1, 7], CENTRE
        play(env, EAST, EAST)
        spawns.append((env.coin, env.owner))
        env.reset()
        starts.append((*env.cells, env.coin))
    coins, counts = np.unique(spawns, axis=0, return_counts=True)
    assert len(coins) == 8 * 2  # on a player too, on the old cell never
    assert abs(counts - 250).max() < 5 * np.sqrt(250)
    assert len(set(starts)) == 9 * 8 * 7


def test_render():
    env = CoinGame(render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    assert frame.shape == (255, 255, 3)
    assert frame.dtype == np.uint8
    env = placed([0, 0], 8, 1, render_mode="rgb_array")  # both in the south-west, the coin in the north-east
    frame = env.render().astype(int)
    redder, bluer = frame[..., 0] > frame[..., 2] + 50, frame[..., 2] > frame[..., 0] + 50
    assert redder[170:, :85].sum() > 500
    assert bluer[170:, :85].sum() > 500
    assert bluer[:85, 170:].sum() > 500
    assert not redder[:170].any()
    assert not bluer[:170, :170].any()


def test_render_without_a_mode_warns():
    with pytest.warns(UserWarning, match="render_mode"):
        assert placed([0, 1], 8, 1).render() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 1}, "size = 1 .* 2 or more"),
        ({"size": 3.0}, r"size = 3\.0 .* whole number"),
        ({"num_agents": 1}, "num_agents = 1 .* from 2 to 8"),
        ({"num_agents": 9}, "num_agents = 9 .* from 2 to 8"),
        ({"max_cycles": 0}, "max_cycles = 0 .* 1 or more"),
        ({"observation": "some"}, "observation = 'some' .* 'full' or 'partial'"),
        ({"render_mode": "human"}, "render_mode = 'human' .* 'rgb_array' or None"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        CoinGame(**arguments)
    assert "\n" not in str(error.value)


def test_bad_actions():
    env = placed([1, 7], CENTRE, 0)
    for action in (-1, 4):
        with pytest.raises(ValueError, match=f"player_1: action = {action} "):
            play(env, NORTH, action)


def towards(x, y, to_x, to_y):
    """The moves that shorten the way."""
    moves = {EAST: to_x > x, WEST: to_x < x, NORTH: to_y > y, SOUTH: to_y < y}
    return [move for move, shorter in moves.items() if shorter]


def greedy(observation, rng, own_only):
    """To the coin if it is one's own (or anybody's); else round the centre, off the coin."""
    own_cell, _, own_coin, other_coin = observation.reshape(4, 9)
    (cell,), coins = np.flatnonzero(own_cell), np.flatnonzero(own_coin if own_only else own_coin + other_coin)
    x, y = divmod(cell, 3)
    if len(coins):
        moves = towards(x, y, *divmod(coins[0], 3)) or [{0: WEST, 2: EAST}.get(x, {0: SOUTH, 2: NORTH}.get(y, NORTH))]
        return int(rng.choice(moves))
    (coin,) = np.flatnonzero(other_coin)
    ahead = {NORTH: (x, min(y + 1, 2)), SOUTH: (x, max(y - 1, 0)), WEST: (max(x - 1, 0), y), EAST: (min(x + 1, 2), y)}
    safe = [move for move, (to_x, to_y) in ahead.items() if 3 * to_x + to_y != coin]
    return min(safe, key=lambda move: abs(ahead[move][0] - 1) + abs(ahead[move][1] - 1))


def scores(own_only, num_episodes):
    """Sums of rewards over both players and an episode, and the own coin rate of all episodes."""
    env, rng, sums, coins, own_coins = CoinGame(), np.random.default_rng(0), [], 0, 0
    for episode in range(num_episodes):
        observations, _ = env.reset(seed=episode)
        total = 0.0
        while env.agents:
            actions = {agent: greedy(observations[agent], rng, own_only) for agent in env.agents}
            observations, rewards, _, _, infos = env.step(actions)
            total += sum(rewards.values())
        sums.append(total)
        coins += sum(info["coins"] for info in infos.values())
        own_coins += sum(info["own_coins"] for info in infos.values())
    return np.array(sums), own_coins / coins


def optimal_score(size, num_steps):
    """The most that two players can have together in an episode, by backward induction over all states."""
    num = size * size
    env = CoinGame(size=size)
    moves = np.array(env._moves)
    shape = (num, num, num, 2, 4, 4)  # cells of both, coin, owner, actions of both
    cell_0, cell_1, coin, owner, action_0, action_1 = np.ogrid[tuple(slice(n) for n in shape)]
    to_0, to_1 = moves[cell_0, action_0], moves[cell_1, action_1]
    reward = (to_0 == coin) * (1 - 2 * owner) + (to_1 == coin) * (2 * owner - 1)
    collected = (to_0 == coin) | (to_1 == coin)
    value = np.zeros(shape[:4])
    for _ in range(num_steps):
        mean = value.mean(3)
        respawned = (mean.sum(2, keepdims=True) - mean) / (num - 1)  # over the cells but the coin's old one
        later = np.where(collected, respawned[to_0, to_1, coin], value[to_0, to_1, coin, owner])
        value = (reward + later).max((4, 5))
    return np.mean([value[start] for start in itertools.permutations(range(num), 3)])


def test_greedy_players_come_near_the_optimum():
    best = optimal_score(3, 50)
    assert best == pytest.approx(27.3675, abs=1e-4)
    sums, rate = scores(own_only=True, num_episodes=100)
    print(f"own coins only: {sums.mean():.2f} +- {sums.std() / 10:.2f} of {best:.2f}, own coin rate {rate:.3f}")
    assert rate == 1.0
    assert 26 < sums.mean() < best + 1
    sums, rate = scores(own_only=False, num_episodes=100)
    print(f"every coin: {sums.mean():.2f} +- {sums.std() / 10:.2f}, own coin rate {rate:.3f}")
    assert abs(sums.mean()) < 1.0  # a coin is +1 or -1 for both together, as likely the one as the other
