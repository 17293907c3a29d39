// A kernel's argument that is a struct.
#pragma once

struct Shape {
  int rows;
  long long columns;
};
