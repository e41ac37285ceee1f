// torch_parallel_for, in the place of PyTorch's.
#pragma once

#include <ATen/Parallel.h>
