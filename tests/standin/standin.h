// What the two halves of the stand-in share: how an operation comes into the books.
#pragma once
#include <cuda_runtime_api.h>

#include <string>

namespace standin {

// Names are compared by address, which keeps a launch as cheap as with the real driver.
using Name = const std::string *;
Name intern(const std::string &name);

enum class Kind { kernel, copy, collective, graph, callback };

// An operation that is queued on a stream: it is counted, or becomes part of the graph that is
// being captured.
cudaError_t queue(Kind kind, Name name, cudaStream_t stream);

// Notes a violation unless `pointer` lies in memory of the current device that was not freed.
bool is_usable(const void *pointer, const std::string &user);

// Notes that the program does what CUDA forbids.
void violate(const std::string &what);

}  // namespace standin
