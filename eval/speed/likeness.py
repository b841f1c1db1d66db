"""How alike two pictures are to the eye."""

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import gaussian_filter

SIGMA, WINDOW = 1.5, 5
"""Of the Gaussian window, in pixels; it reaches five to each side."""
LUMINANCE_FLOOR, CONTRAST_FLOOR = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def structural_similarity(
    first: UInt8[np.ndarray, "height width 3"], second: UInt8[np.ndarray, "height width 3"]
) -> Float[np.ndarray, "height width"]:
    """SSIM of the window around each pixel, the mean of the colours; 1 where both are the same.

    Source: Wang, Bovik, Sheikh and Simoncelli, Image quality assessment: from error visibility to structural
    similarity, IEEE Transactions on Image Processing 13(4), 2004, equation 13 with its constants.
    """
    a, b = first.astype(float), second.astype(float)
    mean_a, mean_b = _around(a), _around(b)
    covariance = _around(a * b) - mean_a * mean_b
    variances = _around(a * a) - mean_a**2 + _around(b * b) - mean_b**2
    luminance = (2 * mean_a * mean_b + LUMINANCE_FLOOR) / (mean_a**2 + mean_b**2 + LUMINANCE_FLOOR)
    return (luminance * (2 * covariance + CONTRAST_FLOOR) / (variances + CONTRAST_FLOOR)).mean(-1)


def _around(values: Float[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width 3"]:
    return gaussian_filter(values, (SIGMA, SIGMA, 0), radius=(WINDOW, WINDOW, 0))
