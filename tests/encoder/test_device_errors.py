import pytest
import torch

from encoder import is_device_error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.AcceleratorError("unspecified launch failure"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("Triton Error [CUDA]: misaligned address"), True),
        # The compiler wraps what its backend raises.
        (Exception("backend='inductor' raised:\nAcceleratorError: CUDA error: misaligned"), True),
        (RuntimeError("Triton Error [CUDA]: device kernel image is invalid"), False),
        (RuntimeError("CUDA error: out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (MemoryError(), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (KeyboardInterrupt("CUDA error"), False),
    ],
)
def test_device_errors_are_recognised(error: BaseException, expected: bool) -> None:
    assert is_device_error(error) == expected
