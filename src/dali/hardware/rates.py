"""Times of matrices that were not measured, from those that were: by bytes and operations.

Of one format, at one number of tokens, both the bytes that are read and the operations grow with the number of weights, so

    seconds(tokens) = fixed(tokens) + weights x rate(tokens)

whichever of the two binds. Two measured shapes give both; one gives the rate alone. A format that was not measured goes by its
relative below, which is unpacked alike: its first token by bytes, as that is bound by reading them, and what further tokens add
by weights, as that is arithmetic on the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from dali.hardware.profile import Table

Points = tuple[tuple[int, float], ...]

RELATIVES = {
    **dict.fromkeys(("f32", "f16"), "bf16"),
    **dict.fromkeys(("q4_1", "q5_0", "q5_1", "iq4_nl", "tq2_0"), "w4"),
    **dict.fromkeys(("q5k", "iq4_xs"), "q4k"),
    **dict.fromkeys(("q3k", "q2k", "nvfp4"), "q6k"),  # 16 columns a scale
    **dict.fromkeys(("iq3_s", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_s", "iq1_m"), "iq3_xxs"),  # coded
}


def alone(tables: Sequence[Table], device: str, kind: str) -> list[Table]:
    """Those of a device and kind, measured with nothing beside."""
    return [table for table in tables if (table.device, table.kind, table.beside) == (device, kind, "")]


def slower(tables: Sequence[Table], beside: str, tokens: float) -> float:
    """How many times as long the CPU's experts of so many tokens take beside something else: by the nearest count of tokens that
    was measured; 1 where none was."""
    for table in tables:
        if (table.device, table.kind, table.beside) == ("cpu", "experts", beside):
            count, seconds = min(table.points, key=lambda point: abs(point[0] - tokens))
            for other in alone(tables, "cpu", "experts"):
                same = (other.format, other.hidden, other.intermediate) == (
                    table.format,
                    table.hidden,
                    table.intermediate,
                )
                if same and count in dict(other.points):
                    return max(seconds / dict(other.points)[count], 1.0)
    return 1.0


def points(tables: Sequence[Table], format: str, parameters: int, nbytes: int) -> Points | None:
    """(tokens, seconds) of a matrix, or an expert, of so many weights and packed bytes; None where no table tells.

    `tables`: of one device and kind. `format` may be mixed, as "q4k (down q6k)": then it goes by its first.
    """
    first = format.partition(" ")[0]
    of = [table for table in tables if table.format == first] or [
        table for table in tables if table.format == RELATIVES.get(first)
    ]
    if not of:
        return None
    measured, share = _of_shape(of, parameters), _bytes_share(of, parameters, nbytes)
    once = measured[0][1]
    return tuple((tokens, seconds + once * (share - 1)) for tokens, seconds in measured)


def _of_shape(tables: Sequence[Table], parameters: int) -> Points:
    """Of so many weights in the format of the tables: a line through the two shapes of which one is nearest, none below 0."""
    near = sorted(tables, key=lambda table: _apart(table.parameters, parameters))[:2]
    first = near[0]
    if len(near) == 1 or near[1].parameters == first.parameters:
        return tuple((tokens, seconds * parameters / first.parameters) for tokens, seconds in first.points)
    small, large = sorted(near, key=lambda table: table.parameters)
    others = dict(large.points)
    found = []
    for tokens, seconds in small.points:
        if tokens not in others:
            continue
        rate = (others[tokens] - seconds) / (large.parameters - small.parameters)
        fixed = seconds - rate * small.parameters
        if (
            rate <= 0 or fixed < 0
        ):  # noise, or the larger one is the slower by weight: in proportion to the nearest
            nearest = dict(first.points)[tokens]
            found.append((tokens, nearest * parameters / first.parameters))
        else:
            found.append((tokens, fixed + rate * parameters))
    return tuple(found)


def _bytes_share(tables: Sequence[Table], parameters: int, nbytes: int) -> float:
    """Bytes of a weight over those of the tables' format; 1 where they do not say theirs."""
    said = [table for table in tables if table.bytes]
    return (nbytes / parameters) / (said[0].bytes / said[0].parameters) if said else 1.0


def _apart(one: int, other: int) -> float:
    return max(one, other) / min(one, other)
