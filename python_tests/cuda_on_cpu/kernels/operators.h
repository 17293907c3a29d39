// y = a * x for n elements.
#pragma once

namespace example {

void scale(const float* x, float a, int n, float* y);

}  // namespace example
