// csrc/math.h and csrc/plan.h for Python: the CPU runs the very formulas that the GPU does.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "../../csrc/math.h"
#include "../../csrc/plan.h"

namespace py = pybind11;

PYBIND11_MODULE(modgrad_native_formulas, m) {
  m.def("philox", [](std::array<uint32_t, 4> c, uint64_t key) {
    const modgrad::Block4 out = modgrad::philox({{c[0], c[1], c[2], c[3]}}, key);
    return std::array<uint32_t, 4>{out.x[0], out.x[1], out.x[2], out.x[3]};
  });
  m.def("normals", [](uint64_t seed, uint32_t tensor, uint64_t quad) {
    const modgrad::Normals4 out = modgrad::normals(seed, tensor, quad);
    return std::array<float, 4>{out.z[0], out.z[1], out.z[2], out.z[3]};
  });
  m.def("standard_deviation", [](py::array_t<double> x) {
    modgrad::Spread s;
    const double* p = x.data();
    for (int64_t i = 0; i < x.size(); ++i) {
      s.sum += p[i] - p[0];
      s.squares += (p[i] - p[0]) * (p[i] - p[0]);
    }
    return modgrad::standard_deviation(s, x.size());
  });
  m.def("plan", [](std::vector<int64_t> sizes, int64_t chunk_size, int64_t task_size) {
    const modgrad::Plan plan = modgrad::make_plan(sizes, chunk_size, task_size);
    std::vector<std::tuple<int64_t, int64_t, int64_t>> chunks;
    for (const modgrad::Chunk& c : plan.chunks) chunks.emplace_back(c.tensor, c.begin, c.size);
    return std::make_tuple(chunks, plan.tasks);
  });
}
