"""Distance, closing speed and time to contact of an object, from its depth and the growth of its box."""

from __future__ import annotations

import math

import numpy as np

DEPTH_NOISE = 0.1
"""Standard deviation of a depth, relative to it."""
BOX_HEIGHT_NOISE = 1.5
"""Standard deviation of the height of a box, in pixels."""
ACCELERATION_STD = 2.0
"""Standard deviation of an object's acceleration, in metres per second squared."""
CLOSING_SPEED_STD = 40.0
"""Standard deviation of the closing speed of a new object, in metres per second."""
OUTLIER_STDS = 3.0
"""Innovations are clipped to this many standard deviations."""
MAX_RATE_STD = 0.2
"""Speed and time to contact are reported only if the standard deviation of the rate (per second) is below this."""
MAX_TIME_TO_CONTACT = 60.0
"""Longer times to contact (seconds) are not reported."""


class TimeToContactFilter:
    """An extended Kalman filter for one object with constant speed.

    State: log of the distance d; its rate d'/d, whose negative inverse is the time to contact; log of object height
    times focal length, which relates box height to distance. Depth measures the distance. The growth of the box
    measures the time to contact, without depth or focal length (Lee 1976, time to contact by looming).
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
        """Distance in metres."""
        return math.exp(self._state[0])

    @property
    def closing_speed(self) -> float:
        """Closing speed in metres per second; NaN while it is uncertain."""
        return -self._state[1] * self.distance if self._covariance[1, 1] < MAX_RATE_STD**2 else math.nan

    @property
    def time_to_contact(self) -> float:
        """Seconds to contact at constant speed; NaN if the object may not be approaching, or if far in the future."""
        rate, doubt = self._state[1], math.sqrt(self._covariance[1, 1])
        soon = doubt < MAX_RATE_STD and rate < -2 * doubt and -1 / rate < MAX_TIME_TO_CONTACT
        return -1 / rate if soon else math.nan

    def update(self, time: float, distance: float, height: float) -> None:
        """Add a measurement: distance in metres and box height in pixels; NaN = not measured."""
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
