"""Every error that photonstep raises on purpose. A message says what, what it got, what it expected and what next."""


class PhotonstepError(Exception):
    """Base of all photonstep errors: catch this one to catch them all."""


class BundleError(PhotonstepError):
    """A bundle is damaged, hostile, of an unknown version, or does not say what it must."""


class CameraError(PhotonstepError):
    """Camera numbers are impossible, or frames do not suffice to measure them."""


class ShapeError(PhotonstepError):
    """An array has a shape or dtype that the operation cannot take."""


class BackendError(PhotonstepError):
    """A requested device or library cannot be used on this machine."""


class PlanError(PhotonstepError):
    """The requested steps, sampler or output cannot be planned."""


class ImageError(PhotonstepError):
    """An image file cannot be read or written as asked."""


class TrainingError(PhotonstepError):
    """Training, compression or export was asked for something that its data, run folder or settings cannot give."""


class StreamError(PhotonstepError):
    """A live stream is closed, has failed, or was asked for something that it cannot do."""


class StreamFull(StreamError):  # noqa: N818
    """Every slot of a stream with the policy "all" holds a frame that still waits."""


class DeadlineMissed(PhotonstepError):  # noqa: N818
    """A result came after its deadline, or is the raw frame because nothing else would have come in time."""
