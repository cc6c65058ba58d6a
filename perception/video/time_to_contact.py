"""How far an object is, how fast it comes nearer, and when it is met: from its depth and from how its box grows."""

from __future__ import annotations

import math

import numpy as np

DEPTH_NOISE = 0.1
"""Standard deviation of a depth, relative to it."""
BOX_HEIGHT_NOISE = 1.5
"""Standard deviation of the height of a box, in pixels."""
ACCELERATION_STD = 2.0
"""Metres per second squared that things may accelerate at without surprise (one standard deviation)."""
CLOSING_SPEED_STD = 40.0
"""Metres per second that a thing first seen may come nearer at (one standard deviation)."""
OUTLIER_STDS = 3.0
"""Standard deviations from what was expected over which a measurement counts no more than at this limit."""
MAX_RATE_STD = 0.2
"""Standard deviation of the rate, per second, under which speed and time to contact are told."""
MAX_TIME_TO_CONTACT = 60.0
"""Seconds to contact over which it is not told."""


class TimeToContactFilter:
    """An extended Kalman filter of one object that goes on at its speed.

    State: log of the distance d; its rate d'/d, whose negative inverse is the time to contact; log of what makes a
    distance of the height of the box (height of the thing times focal length). Depth says how far it is, the growth of
    the box how soon it is met, which needs neither depth nor focal length (Lee 1976, time to contact by looming).
    """

    def __init__(self, time: float, distance: float, height: float) -> None:
        self.time = time
        self._state = np.array([math.log(distance), 0.0, 0.0])
        self._covariance = np.diag([DEPTH_NOISE**2, (CLOSING_SPEED_STD / distance) ** 2, 100.0])
        if height > 0:
            self._state[2] = math.log(distance * height)
            noise = (BOX_HEIGHT_NOISE / height) ** 2
            self._covariance[2] = self._covariance[:, 2] = (DEPTH_NOISE**2, 0.0, DEPTH_NOISE**2 + noise)

    @property
    def distance(self) -> float:
        """Metres."""
        return math.exp(self._state[0])

    @property
    def closing_speed(self) -> float:
        """Metres per second at which it comes nearer; NaN while that is not known well."""
        return -self._state[1] * self.distance if self._covariance[1, 1] < MAX_RATE_STD**2 else math.nan

    @property
    def time_to_contact(self) -> float:
        """Seconds until it is met if it goes on so; NaN where it does not surely come nearer, or far in the future."""
        rate, doubt = self._state[1], math.sqrt(self._covariance[1, 1])
        soon = doubt < MAX_RATE_STD and rate < -2 * doubt and -1 / rate < MAX_TIME_TO_CONTACT
        return -1 / rate if soon else math.nan

    def update(self, time: float, distance: float, height: float) -> None:
        """A measurement: metres, and pixels of the box's height; NaN = not measured now."""
        self._predict(max(time - self.time, 1e-3))
        self.time = time
        if distance > 0:
            self._correct(np.array([1.0, 0.0, 0.0]), math.log(distance), DEPTH_NOISE**2)
        if height > 0:
            self._correct(np.array([-1.0, 0.0, 1.0]), math.log(height), (BOX_HEIGHT_NOISE / height) ** 2)

    def _predict(self, seconds: float) -> None:
        log_distance, rate, size = self._state
        growth = max(0.2, 1 + rate * seconds)
        self._state = np.array([log_distance + math.log(growth), rate / growth, size])
        move = np.array([[1, seconds / growth, 0], [0, 1 / growth**2, 0], [0, 0, 1]])
        push = np.array([seconds**2 / 2, seconds, 0]) * (ACCELERATION_STD / self.distance)
        self._covariance = move @ self._covariance @ move.T + np.outer(push, push) + np.diag([0, 0, 1e-5 * seconds])

    def _correct(self, direction: np.ndarray, measured: float, noise: float) -> None:
        surprise = measured - float(direction @ self._state)
        expected = float(direction @ self._covariance @ direction) + noise
        limit = OUTLIER_STDS * math.sqrt(expected)
        gain = self._covariance @ direction / expected
        self._state = self._state + gain * min(max(surprise, -limit), limit)
        self._covariance = self._covariance - np.outer(gain, direction @ self._covariance)
