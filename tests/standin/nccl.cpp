// A stand-in for NCCL: collectives are noted in their order, and nothing travels.
//
// Each process goes on as if all others had given what it gives itself.
#include "standin.h"

#include <cstdint>
#include <cstring>

using namespace standin;

namespace {

struct Type {
  const char *name;
  size_t size;
};

// By NCCL's numbers.
constexpr Type TYPES[] = {{"i8", 1},  {"u8", 1},  {"i32", 4}, {"u32", 4},  {"i64", 8},  {"u64", 8},
                          {"f16", 2}, {"f32", 4}, {"f64", 8}, {"bf16", 2}, {"e4m3", 1}, {"e5m2", 1}};

constexpr size_t SMALL = 1 << 20;  // bytes that a gather moves; more would only make memory real

struct Communicator {
  int number, rank, size;
};

int join(Communicator **made, int size, int rank) {
  static int joined = 0;  // processes make their communicators in the same order
  *made = new Communicator{joined++, rank, size};
  return 0;
}

int note(const char *what, const void *from, const void *to, size_t count, int type,
         Communicator *all, cudaStream_t stream) {
  std::string name = std::string(what) + " of " + std::to_string(count) + " " + TYPES[type].name +
                     ", communicator " + std::to_string(all->number);
  for (const void *pointer : {from, to})
    if (pointer && count) is_usable(pointer, what);
  return queue(Kind::collective, intern(name), stream);
}

}  // namespace

extern "C" {

struct Id {
  char bytes[128];
};

using C = Communicator *;

// ------------------------------------------------------------------------------- communicators

int ncclGetVersion(int *version) {
  *version = 23007;
  return 0;
}

int ncclGetUniqueId(Id *id) {
  memset(id, 1, sizeof *id);
  return 0;
}

int ncclCommInitRank(C *made, int size, Id, int rank) { return join(made, size, rank); }
int ncclCommInitRankConfig(C *made, int size, Id, int rank, void *) { return join(made, size, rank); }
int ncclCommInitRankScalable(C *made, int size, int rank, int, Id *, void *) {
  return join(made, size, rank);
}
int ncclCommSplit(C all, int, int, C *made, void *) { return join(made, all->size, all->rank); }
int ncclCommCount(C all, int *size) {
  *size = all->size;
  return 0;
}
int ncclCommUserRank(C all, int *rank) {
  *rank = all->rank;
  return 0;
}
int ncclCommGetAsyncError(C, int *error) { return *error = 0; }
int ncclCommRegister(C, void *, size_t, void **handle) {
  *handle = nullptr;
  return 0;
}
int ncclCommMemStats(C, int, uint64_t *bytes) {
  *bytes = 0;
  return 0;
}
int ncclMemAlloc(void **pointer, size_t size) { return cudaMalloc(pointer, size); }
int ncclMemFree(void *pointer) { return cudaFree(pointer); }
const char *ncclGetErrorString(int) { return "an error of the stand-in"; }
const char *ncclGetLastError(C) { return ""; }

int ncclCommAbort(C) { return 0; }
int ncclCommDestroy(C) { return 0; }
int ncclCommFinalize(C) { return 0; }
int ncclCommRevoke(C, int) { return 0; }
int ncclCommDeregister(C, void *) { return 0; }
int ncclCommInitAll(C *, int, const int *) { return 0; }
int ncclCommShrink(C, int *, int, C *, void *, int) { return 0; }
int ncclGroupStart() { return 0; }
int ncclGroupEnd() { return 0; }
int ncclGroupSimulateEnd(void *) { return 0; }

// ------------------------------------------------------------------------------- collectives

int ncclAllReduce(const void *from, void *to, size_t count, int type, int, C all, cudaStream_t stream) {
  return note("all-reduce", from, to, count, type, all, stream);
}

int ncclBroadcast(const void *from, void *to, size_t count, int type, int, C all, cudaStream_t stream) {
  return note("broadcast", from, to, count, type, all, stream);
}

int ncclBcast(void *both, size_t count, int type, int, C all, cudaStream_t stream) {
  return note("broadcast", both, both, count, type, all, stream);
}

int ncclAllGather(const void *from, void *to, size_t count, int type, C all, cudaStream_t stream) {
  int error = note("all-gather", from, to, count, type, all, stream);
  size_t bytes = count * TYPES[type].size;
  if (!error && bytes <= SMALL)
    for (int rank = 0; rank < all->size; rank++)
      memmove(static_cast<char *>(to) + rank * bytes, from, bytes);
  return error;
}

int ncclReduce(const void *from, void *to, size_t count, int type, int, int, C all,
               cudaStream_t stream) {
  return note("reduce", from, to, count, type, all, stream);
}

int ncclReduceScatter(const void *from, void *to, size_t count, int type, int, C all,
                      cudaStream_t stream) {
  return note("reduce-scatter", from, to, count, type, all, stream);
}

int ncclSend(const void *from, size_t count, int type, int, C all, cudaStream_t stream) {
  return note("send", from, nullptr, count, type, all, stream);
}

int ncclRecv(void *to, size_t count, int type, int, C all, cudaStream_t stream) {
  return note("receive", nullptr, to, count, type, all, stream);
}

}  // extern "C"
