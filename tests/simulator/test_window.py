from joulegate.arrivals import Arrival
from simulator.window import Window


def test_a_window_is_shifted_sped_up_limited_and_clipped() -> None:
    arrivals = tuple(Arrival(float(at), 100 * at + 1, 10 * at + 1) for at in range(10))
    window = Window(start=2, duration=5, limit=3, speed=2.0, clip_input=250, clip_output=35)
    assert window.cut(arrivals) == (
        Arrival(0.0, 201, 21),
        Arrival(0.5, 250, 31),
        Arrival(1.0, 250, 35),
    )
