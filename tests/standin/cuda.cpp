// A stand-in for the CUDA runtime, the driver and cuBLAS: see README.md.
//
// Device memory is host memory that no kernel fills. Kernels are counted and not run, so everything
// that was queued is always done, unless torch.cuda._sleep delays it. Streams, events and captures
// follow the rules of CUDA.
#include "standin.h"

#include <cuda.h>
#include <cxxabi.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

using namespace standin;

namespace {

std::recursive_mutex mutex;
#define LOCKED std::lock_guard<std::recursive_mutex> locked(mutex)

// Of the card that this one stands for.
const size_t MEMORY = size_t(getenv("STANDIN_GIB") ? atoi(getenv("STANDIN_GIB")) : 80) << 30;
constexpr size_t LARGE = 4096;  // copies within the device that have more bytes move nothing

// ------------------------------------------------------------------------------- the books

struct Tally {
  std::map<std::pair<Kind, Name>, long> operations;
  std::vector<Name> collectives;  // in order

  void add(Kind kind, Name name) {
    operations[{kind, name}]++;
    if (kind == Kind::collective) collectives.push_back(name);
  }
};

Tally eager, captured;             // since the last reset
std::map<std::string, long> waits;  // calls in which the host waits for the device
std::map<std::string, long> violations;  // since the process began
bool is_spinning = false;  // torch.cuda._sleep was launched, and nobody has waited since

cudaError_t &last_error() {
  static thread_local cudaError_t error = cudaSuccess;
  return error;
}

cudaError_t fail(cudaError_t error) { return last_error() = error; }

// ------------------------------------------------------------------------------- devices

thread_local int current_device = 0;

int device_count() {
  const char *count = getenv("STANDIN_DEVICES");
  return count ? atoi(count) : 1;
}

// The attributes of an H100, by the numbers of the runtime, which are those of the driver.
int attribute(int which) {
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor: return 9;
    case cudaDevAttrMultiProcessorCount: return 132;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMaxThreadsPerBlock: return 1024;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return 32;
    case cudaDevAttrMaxBlockDimX: return 1024;
    case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 2147483647;
    case cudaDevAttrMaxGridDimY: return 65535;
    case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 48 << 10;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return 227 << 10;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 228 << 10;
    case cudaDevAttrMaxRegistersPerBlock: return 65536;
    case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
    case cudaDevAttrClockRate: return 1980000;
    case cudaDevAttrMemoryClockRate: return 2619000;
    case cudaDevAttrGlobalMemoryBusWidth: return 5120;
    case cudaDevAttrL2CacheSize: return 50 << 20;
    case cudaDevAttrUnifiedAddressing: return 1;
    case cudaDevAttrCooperativeLaunch: return 1;
  }
  return 0;
}

// ------------------------------------------------------------------------------- streams

struct Stream {
  int device;
  long last = 0;               // its last operation
  std::map<Stream *, long> seen;  // the last operation of each stream that it has waited for
  bool capturing = false;
};

struct Event {
  bool recorded = false;
  unsigned long long capture = 0;  // in which it was recorded, or 0
  std::map<Stream *, long> seen;
};

struct Capture {
  unsigned long long id;
  Stream *origin;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  Tally *graph;
  std::set<Stream *> streams;
  bool broken = false;
};

Capture *capture = nullptr;  // that which is under way; two at a time are refused
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
long operations = 0;
std::unordered_set<Stream *> streams;

bool is_default(cudaStream_t handle) {
  return !handle || handle == cudaStreamLegacy || handle == cudaStreamPerThread;
}

Stream *stream_of(cudaStream_t handle) {
  static Stream defaults[16] = {{0}, {1}, {2},  {3},  {4},  {5},  {6},  {7},
                                {8}, {9}, {10}, {11}, {12}, {13}, {14}, {15}};
  if (is_default(handle)) return &defaults[current_device];
  auto stream = reinterpret_cast<Stream *>(handle);
  if (streams.count(stream)) return stream;
  violate("a stream that was destroyed is used");
  return &defaults[current_device];
}

cudaError_t break_capture(const std::string &what) {
  violate(what);
  if (capture) capture->broken = true;
  return fail(cudaErrorStreamCaptureUnsupported);
}

// Whether the capture that is under way forbids this thread a call that is unsafe beside it.
bool is_forbidden() {
  if (!capture || thread_mode == cudaStreamCaptureModeRelaxed) return false;
  bool is_own = capture->thread == std::this_thread::get_id();
  if (is_own && capture->mode != cudaStreamCaptureModeRelaxed) return true;
  bool is_global = capture->mode == cudaStreamCaptureModeGlobal;
  return is_global && thread_mode == cudaStreamCaptureModeGlobal;
}

#define REFUSE_IN_CAPTURE(call) \
  if (is_forbidden()) return break_capture(std::string(call) + " during a capture")

// ------------------------------------------------------------------------------- memory

struct Block {
  size_t size;
  int device;
  bool freed = false;
};

using Blocks = std::map<const char *, Block>;
Blocks device_blocks, pinned_blocks;
size_t allocated = 0;

Block *find(Blocks &blocks, const void *pointer) {
  auto address = static_cast<const char *>(pointer);
  auto next = blocks.upper_bound(address);
  if (next == blocks.begin()) return nullptr;
  --next;
  return address < next->first + next->second.size ? &next->second : nullptr;
}

bool is_on_device(const void *pointer) {
  Block *block = find(device_blocks, pointer);
  return block && !block->freed;
}

// No address is given out twice, so that one that was freed is known for ever.
cudaError_t allocate(void **pointer, size_t size) {
  LOCKED;
  REFUSE_IN_CAPTURE("cudaMalloc");
  if (allocated + size > MEMORY) return fail(cudaErrorMemoryAllocation);
  size = (size + 4095) & ~size_t(4095);
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  *pointer = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (*pointer == MAP_FAILED) return fail(cudaErrorMemoryAllocation);
  device_blocks[static_cast<char *>(*pointer)] = {size, current_device};
  allocated += size;
  return cudaSuccess;
}

cudaError_t release(void *pointer) {
  LOCKED;
  if (!pointer) return cudaSuccess;
  REFUSE_IN_CAPTURE("cudaFree");
  auto block = device_blocks.find(static_cast<char *>(pointer));
  if (block == device_blocks.end() || block->second.freed) {
    violate("cudaFree of memory that is not allocated");
    return fail(cudaErrorInvalidValue);
  }
  block->second.freed = true;
  allocated -= block->second.size;
  madvise(pointer, block->second.size, MADV_DONTNEED);
  mprotect(pointer, block->second.size, PROT_NONE);
  return cudaSuccess;
}

// What a copy moves. A single byte that comes back from the device is a flag, which no kernel has
// set; large copies within the device would only make their memory real.
void move(void *to, const void *from, size_t size) {
  bool to_device = is_on_device(to), from_device = is_on_device(from);
  if (size == 1 && from_device && !to_device) {
    *static_cast<char *>(to) = 0;
  } else if (!(to_device && from_device && size > LARGE)) {
    memmove(to, from, size);
  }
}

// "H2D", "D2H", "D2D" or "H2H", and whether the host's memory is pinned.
std::string describe_copy(const void *to, const void *from) {
  bool to_device = find(device_blocks, to), from_device = find(device_blocks, from);
  std::string direction = std::string(from_device ? "D" : "H") + "2" + (to_device ? "D" : "H");
  if (to_device && from_device) return direction;
  const void *host = to_device ? from : to;
  return direction + (find(pinned_blocks, host) ? " pinned" : " pageable");
}

void check_copy(const void *to, const void *from, const std::string &user) {
  for (const void *pointer : {to, from}) {
    Block *block = find(device_blocks, pointer);
    if (block && block->freed) violate(user + " is given memory that was freed");
  }
}

cudaError_t wait(const std::string &call) {
  LOCKED;
  if (capture) return break_capture(call + " during a capture");
  waits[call]++;
  is_spinning = false;
  return cudaSuccess;
}

// ------------------------------------------------------------------------------- kernels

std::unordered_map<const void *, std::string> registered;  // mangled names by their host function

Name kernel_name(const void *function) {
  static std::unordered_map<const void *, Name> known;
  LOCKED;
  Name &name = known[function];
  if (!name) {
    auto found = registered.find(function);
    std::string mangled = found == registered.end() ? "unknown kernel" : found->second;
    char *plain = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, nullptr);
    name = intern(plain ? plain : mangled);
    free(plain);
  }
  return name;
}

bool is_launchable(Name name, dim3 grid, size_t threads) {
  bool fits = grid.x && grid.y && grid.z && grid.y <= 65535 && grid.z <= 65535;
  if (fits && threads && threads <= 1024) return true;
  violate("a grid or block that no card takes: " + *name);
  return false;
}

cudaError_t launch(const void *function, dim3 grid, dim3 block, cudaStream_t stream) {
  Name name = kernel_name(function);
  if (!is_launchable(name, grid, size_t(block.x) * block.y * block.z))
    return fail(cudaErrorInvalidConfiguration);
  return queue(Kind::kernel, name, stream);
}

CUresult launch_from_module(CUfunction function, dim3 grid, dim3 block, CUstream stream) {
  auto name = reinterpret_cast<Name>(function);
  if (!is_launchable(name, grid, size_t(block.x) * block.y * block.z))
    return CUDA_ERROR_INVALID_VALUE;
  return static_cast<CUresult>(queue(Kind::kernel, name, stream));
}

const char *name_of(Kind kind) {
  switch (kind) {
    case Kind::kernel: return "kernel";
    case Kind::copy: return "copy";
    case Kind::collective: return "collective";
    case Kind::graph: return "graph";
    default: return "callback";
  }
}

}  // namespace

namespace standin {

Name intern(const std::string &name) {
  static std::unordered_set<std::string> names;
  LOCKED;
  return &*names.insert(name).first;
}

void violate(const std::string &what) {
  LOCKED;
  violations[what]++;
}

cudaError_t queue(Kind kind, Name name, cudaStream_t handle) {
  LOCKED;
  Stream *stream = stream_of(handle);
  if (kind == Kind::kernel && stream->device != current_device) {
    violate("wrong device: " + *name + " is launched on a stream of another device");
    return fail(cudaErrorInvalidResourceHandle);
  }
  stream->last = stream->seen[stream] = ++operations;
  if (stream->capturing) {
    if (capture->broken) return fail(cudaErrorStreamCaptureInvalidated);
    capture->graph->add(kind, name);
    return cudaSuccess;
  }
  if (capture) violate("beside the capture and not part of it: " + *name);
  if (name->find("spin_kernel") != name->npos) is_spinning = true;
  eager.add(kind, name);
  return cudaSuccess;
}

bool is_usable(const void *pointer, const std::string &user) {
  LOCKED;
  Block *block = find(device_blocks, pointer);
  if (block && !block->freed && block->device == current_device) return true;
  const char *what = !block                            ? "that is not on the device"
                     : block->freed                    ? "that was freed"
                                                       : "on another device";
  violate(user + " is given memory " + what);
  return false;
}

}  // namespace standin

extern "C" {

// ------------------------------------------------------------------------------- for Python

void standin_reset() {
  LOCKED;
  eager = captured = Tally();
  waits.clear();
}

// The violations stay until they are forgotten, whatever was counted since.
void standin_forget_violations() {
  LOCKED;
  violations.clear();
}

// Lines of four fields that tabs divide: when, what, how often, name.
const char *standin_report() {
  static std::string text;
  LOCKED;
  text.clear();
  auto write = [](const std::string &when, const std::string &what, long count, const std::string &name) {
    text += when + "\t" + what + "\t" + std::to_string(count) + "\t" + name + "\n";
  };
  const std::pair<const char *, Tally *> tallies[] = {{"eager", &eager}, {"captured", &captured}};
  for (auto &[when, tally] : tallies) {
    for (auto &[operation, count] : tally->operations)
      write(when, name_of(operation.first), count, *operation.second);
    for (Name collective : tally->collectives) write(when, "ordered", 1, *collective);
  }
  for (auto &[call, count] : waits) write("eager", "wait", count, call);
  for (auto &[what, count] : violations) write("ever", "violation", count, what);
  return text.c_str();
}

// Python stands in for cuDNN and enters its kernels here.
void standin_launch(const char *name, void *stream) {
  queue(Kind::kernel, intern(name), static_cast<cudaStream_t>(stream));
}

// ------------------------------------------------------------------------------- what does nothing

int standin_success() { return 0; }

// These succeed and do nothing, whatever they are given; so they need no signature.
#define SUCCEEDS(function)                                                          \
  asm(".globl " #function "\n.type " #function ", %function\n.set " #function ", standin_success\n");

SUCCEEDS(__cudaRegisterFatBinaryEnd)
SUCCEEDS(__cudaUnregisterFatBinary)
SUCCEEDS(__cudaRegisterVar)
SUCCEEDS(cudaLibraryUnload)
SUCCEEDS(cudaKernelSetAttributeForDevice)
SUCCEEDS(cudaFuncSetAttribute)
SUCCEEDS(cudaDeviceEnablePeerAccess)
SUCCEEDS(cudaDeviceSetGraphMemAttribute)
SUCCEEDS(cudaProfilerStart)
SUCCEEDS(cudaProfilerStop)
SUCCEEDS(cudaHostRegister)
SUCCEEDS(cudaHostUnregister)
SUCCEEDS(cudaMemPoolSetAttribute)
SUCCEEDS(cudaMemPoolSetAccess)
SUCCEEDS(cudaMemPoolTrimTo)
SUCCEEDS(cudaEventDestroy)
SUCCEEDS(cudaGraphExecDestroy)
SUCCEEDS(cudaGraphDestroy)
SUCCEEDS(cudaGraphRetainUserObject)
SUCCEEDS(cudaUserObjectRelease)
SUCCEEDS(cudaStreamUpdateCaptureDependencies)
SUCCEEDS(cudaIpcCloseMemHandle)
SUCCEEDS(cuInit)
SUCCEEDS(cuCtxSetCurrent)
SUCCEEDS(cuCtxSetLimit)
SUCCEEDS(cuModuleUnload)
SUCCEEDS(cuFuncSetAttribute)
SUCCEEDS(cuFuncSetCacheConfig)
SUCCEEDS(cuLinkAddData_v2)
SUCCEEDS(cuLinkComplete)
SUCCEEDS(cuLinkCreate_v2)
SUCCEEDS(cuTensorMapEncodeTiled)
SUCCEEDS(cublasDestroy_v2)
SUCCEEDS(cublasSetWorkspace_v2)
SUCCEEDS(cublasSetMathMode)
SUCCEEDS(cublasSetPointerMode_v2)

// ------------------------------------------------------------------------------- devices

cudaError_t cudaGetDeviceCount(int *count) {
  *count = device_count();
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) return fail(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int) {
  *value = attribute(which);
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *card, int device) {
  memset(card, 0, sizeof *card);
  strcpy(card->name, "stand-in for an H100");
  card->totalGlobalMem = MEMORY;
  card->major = attribute(cudaDevAttrComputeCapabilityMajor);
  card->multiProcessorCount = attribute(cudaDevAttrMultiProcessorCount);
  card->warpSize = attribute(cudaDevAttrWarpSize);
  card->maxThreadsPerBlock = attribute(cudaDevAttrMaxThreadsPerBlock);
  card->maxThreadsPerMultiProcessor = attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
  card->maxBlocksPerMultiProcessor = attribute(cudaDevAttrMaxBlocksPerMultiprocessor);
  card->maxThreadsDim[0] = card->maxThreadsDim[1] = 1024;
  card->maxThreadsDim[2] = attribute(cudaDevAttrMaxBlockDimZ);
  card->maxGridSize[0] = attribute(cudaDevAttrMaxGridDimX);
  card->maxGridSize[1] = card->maxGridSize[2] = attribute(cudaDevAttrMaxGridDimY);
  card->sharedMemPerBlock = attribute(cudaDevAttrMaxSharedMemoryPerBlock);
  card->sharedMemPerBlockOptin = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  card->sharedMemPerMultiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  card->regsPerBlock = attribute(cudaDevAttrMaxRegistersPerBlock);
  card->regsPerMultiprocessor = attribute(cudaDevAttrMaxRegistersPerMultiprocessor);
  card->totalConstMem = 64 << 10;
  card->l2CacheSize = attribute(cudaDevAttrL2CacheSize);
  card->memoryBusWidth = attribute(cudaDevAttrGlobalMemoryBusWidth);
  card->textureAlignment = 512;
  card->texturePitchAlignment = 32;
  card->pciBusID = 1 + device;
  card->concurrentKernels = card->unifiedAddressing = card->managedMemory = 1;
  card->streamPrioritiesSupported = card->cooperativeLaunch = card->ECCEnabled = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) {
  *can = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
  snprintf(text, size, "0000:%02x:00.0", 1 + device);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int) {
  *pool = reinterpret_cast<cudaMemPool_t>(1);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetGraphMemAttribute(int, cudaGraphMemAttributeType, void *value) {
  memset(value, 0, 8);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return wait("cudaDeviceSynchronize"); }

cudaError_t cudaDriverGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }

const char *cudaGetErrorName(cudaError_t error) {
  return error ? "an error of the stand-in" : "cudaSuccess";
}

const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureUnjoined: return "capturing stream has unjoined work";
    case cudaErrorStreamCaptureIsolation:
      return "dependency created on uncaptured work in another stream";
    case cudaErrorStreamCaptureImplicit:
      return "operation would make the legacy stream depend on a capturing blocking stream";
    case cudaErrorCapturedEvent:
      return "operation not permitted on an event last recorded in a capturing stream";
    default: return "an error of the stand-in";
  }
}

cudaError_t cudaGetLastError() {
  cudaError_t error = last_error();
  last_error() = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return last_error(); }

// ------------------------------------------------------------------------------- kernels

void **__cudaRegisterFatBinary(void *) {
  static void *handle;
  return &handle;
}

char __cudaInitModule(void **) { return 1; }

void __cudaRegisterFunction(void **, const char *function, char *, const char *name, int, uint3 *,
                            uint3 *, dim3 *, dim3 *, int *) {
  LOCKED;
  registered[function] = name;
}

// <<<grid, block>>> arrives in two calls, with that of the kernel's host function between them.
static thread_local struct {
  dim3 grid, block;
  size_t shared;
  CUstream_st *stream;
} configuration;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st *stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<CUstream_st **>(stream) = configuration.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void *>(function));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **, size_t,
                               cudaStream_t stream) {
  return launch(kernel, grid, block, stream);
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **, size_t,
                             cudaStream_t stream) {
  return launch(function, grid, block, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **) {
  return launch(function, config->gridDim, config->blockDim, config->stream);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t, void *) {
  return queue(Kind::callback, intern("host function"), stream);
}

cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *, cudaJitOption *, void **,
                                unsigned, cudaLibraryOption *, void **, unsigned) {
  *library = reinterpret_cast<cudaLibrary_t>(1);
  return cudaSuccess;
}

cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t, const char *name) {
  LOCKED;
  const void *function = intern(name);
  registered[function] = name;
  return __cudaGetKernel(kernel, function);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->binaryVersion = attributes->ptxVersion = 90;
  attributes->maxDynamicSharedSizeBytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int,
                                                                   size_t, unsigned) {
  *blocks = 2;
  return cudaSuccess;
}

// ------------------------------------------------------------------------------- memory

cudaError_t cudaMalloc(void **pointer, size_t size) { return allocate(pointer, size); }
cudaError_t cudaFree(void *pointer) { return release(pointer); }
cudaError_t cudaMallocAsync(void **pointer, size_t size, cudaStream_t) {
  return allocate(pointer, size);
}
cudaError_t cudaFreeAsync(void *pointer, cudaStream_t) { return release(pointer); }

cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned) {
  LOCKED;
  REFUSE_IN_CAPTURE("cudaHostAlloc");
  size = (size + 4095) & ~size_t(4095);
  *pointer = aligned_alloc(4096, size);
  pinned_blocks[static_cast<char *>(*pointer)] = {size, 0};
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void *pointer) {
  LOCKED;
  pinned_blocks.erase(static_cast<char *>(pointer));
  free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
  *total = MEMORY;
  *left = MEMORY - allocated;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *pointer) {
  LOCKED;
  memset(attributes, 0, sizeof *attributes);
  Block *block = find(device_blocks, pointer);
  attributes->type = block                           ? cudaMemoryTypeDevice
                     : find(pinned_blocks, pointer) ? cudaMemoryTypeHost
                                                    : cudaMemoryTypeUnregistered;
  attributes->device = block ? block->device : 0;
  attributes->devicePointer = const_cast<void *>(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind) {
  LOCKED;
  check_copy(to, from, "cudaMemcpy");
  cudaError_t error = wait("cudaMemcpy");
  if (!error) move(to, from, size);
  return error;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, cudaMemcpyKind,
                            cudaStream_t stream) {
  LOCKED;
  std::string name = describe_copy(to, from);
  check_copy(to, from, "a copy " + name);
  bool is_captured = stream_of(stream)->capturing;
  if (is_captured && name.find("pageable") != name.npos)
    return break_capture("a copy " + name + " during a capture");
  cudaError_t error = queue(Kind::copy, intern("memcpy " + name), stream);
  if (!error && !is_captured) move(to, from, size);
  return error;
}

cudaError_t cudaMemcpy2DAsync(void *, size_t, const void *, size_t, size_t, size_t, cudaMemcpyKind,
                              cudaStream_t stream) {
  return queue(Kind::copy, intern("memcpy 2D"), stream);
}

cudaError_t cudaMemcpyPeerAsync(void *, int, const void *, int, size_t, cudaStream_t stream) {
  return queue(Kind::copy, intern("memcpy between devices"), stream);
}

cudaError_t cudaMemcpyToSymbol(const void *, const void *, size_t, size_t, cudaMemcpyKind) {
  return wait("cudaMemcpyToSymbol");
}

cudaError_t cudaGetSymbolAddress(void **pointer, const void *) {
  static char memory[1 << 16];
  *pointer = memory;
  return cudaSuccess;
}

cudaError_t cudaMemset(void *pointer, int value, size_t size) {
  cudaError_t error = wait("cudaMemset");
  if (!error && size <= LARGE) memset(pointer, value, size);
  return error;
}

cudaError_t cudaMemsetAsync(void *pointer, int value, size_t size, cudaStream_t stream) {
  LOCKED;
  if (!is_usable(pointer, "memset")) return fail(cudaErrorInvalidValue);
  cudaError_t error = queue(Kind::copy, intern("memset"), stream);
  if (!error && !stream_of(stream)->capturing && size <= LARGE) memset(pointer, value, size);
  return error;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *value) {
  memset(value, 0, 8);
  return cudaSuccess;
}

// ------------------------------------------------------------------------------- streams, events

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *handle, unsigned, int) {
  LOCKED;
  auto stream = new Stream{current_device};
  streams.insert(stream);
  *handle = reinterpret_cast<cudaStream_t>(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *handle, unsigned flags) {
  return cudaStreamCreateWithPriority(handle, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *handle) { return cudaStreamCreateWithFlags(handle, 0); }

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  LOCKED;
  streams.erase(stream_of(handle));
  return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t, int *priority) {
  *priority = 0;
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  LOCKED;
  if (stream_of(handle)->capturing) return break_capture("cudaStreamQuery of a captured stream");
  REFUSE_IN_CAPTURE("cudaStreamQuery");
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  LOCKED;
  waits["cudaStreamSynchronize"]++;
  is_spinning = false;
  if (stream_of(handle)->capturing)
    return break_capture("cudaStreamSynchronize of a captured stream");
  REFUSE_IN_CAPTURE("cudaStreamSynchronize");
  return cudaSuccess;
}

cudaError_t cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t, void *, unsigned) {
  return queue(Kind::callback, intern("callback"), handle);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t on) {
  LOCKED;
  auto event = reinterpret_cast<Event *>(handle);
  Stream *stream = stream_of(on);
  event->recorded = true;
  event->capture = stream->capturing ? capture->id : 0;
  // Outside of a capture nothing asks which work an event covers.
  event->seen = stream->capturing ? stream->seen : std::map<Stream *, long>();
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}

static bool is_captured(cudaEvent_t handle) {
  auto event = reinterpret_cast<Event *>(handle);
  return capture && event->capture == capture->id;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  LOCKED;
  if (is_captured(event)) {
    break_capture("cudaEventQuery of a captured event");
    return fail(cudaErrorCapturedEvent);
  }
  REFUSE_IN_CAPTURE("cudaEventQuery");
  return is_spinning ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  LOCKED;
  waits["cudaEventSynchronize"]++;
  is_spinning = false;
  if (is_captured(event)) {
    break_capture("cudaEventSynchronize of a captured event");
    return fail(cudaErrorCapturedEvent);
  }
  REFUSE_IN_CAPTURE("cudaEventSynchronize");
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1;
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned) {
  LOCKED;
  auto event = reinterpret_cast<Event *>(event_handle);
  Stream *stream = stream_of(handle);
  if (is_captured(event_handle)) {
    if (is_default(handle)) {
      break_capture("the default stream waits for a captured event");
      return fail(cudaErrorStreamCaptureImplicit);
    }
    if (!stream->capturing) stream->last = 0;  // what it did before is none of the capture's
    stream->capturing = true;
    capture->streams.insert(stream);
    for (auto &[other, last] : event->seen)
      if (long &known = stream->seen[other]; known < last) known = last;
  } else if (stream->capturing && event->recorded) {
    break_capture("a captured stream waits for an event that was recorded outside of the capture");
    return fail(cudaErrorStreamCaptureIsolation);
  }
  return cudaSuccess;
}

// ------------------------------------------------------------------------------- captures, graphs

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  static unsigned long long begun = 0;
  LOCKED;
  if (capture) return break_capture("a capture begins during another one");
  if (is_default(handle)) return break_capture("a capture of the default stream");
  Stream *stream = stream_of(handle);
  stream->capturing = true;
  capture = new Capture{++begun, stream, mode, std::this_thread::get_id(), new Tally, {stream}};
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t handle, cudaGraph_t, const cudaGraphNode_t *,
                                          const cudaGraphEdgeData *, size_t,
                                          cudaStreamCaptureMode mode) {
  return cudaStreamBeginCapture(handle, mode);
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph) {
  LOCKED;
  *graph = nullptr;
  Stream *origin = stream_of(handle);
  if (!capture || capture->origin != origin) {
    violate("a capture ends that did not begin on this stream");
    return fail(cudaErrorIllegalState);
  }
  cudaError_t error = capture->broken ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
  for (Stream *stream : capture->streams) {
    stream->capturing = false;
    if (stream != origin && origin->seen[stream] < stream->last) {
      violate("the capture ends before it waited for all streams that took part");
      error = cudaErrorStreamCaptureUnjoined;
    }
  }
  if (!error) *graph = reinterpret_cast<cudaGraph_t>(capture->graph);
  delete capture;
  capture = nullptr;
  return error ? fail(error) : error;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                     size_t *count) {
  static cudaGraphNode_t none;
  LOCKED;
  bool is_captured = stream_of(handle)->capturing;
  if (status) {
    *status = !is_captured      ? cudaStreamCaptureStatusNone
              : capture->broken ? cudaStreamCaptureStatusInvalidated
                                : cudaStreamCaptureStatusActive;
  }
  if (id) *id = is_captured ? capture->id : 0;
  if (graph) *graph = is_captured ? reinterpret_cast<cudaGraph_t>(capture->graph) : nullptr;
  if (nodes) *nodes = &none;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status) {
  return cudaStreamGetCaptureInfo(handle, status, nullptr, nullptr, nullptr, nullptr, nullptr);
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *runnable, cudaGraph_t graph,
                                          unsigned long long) {
  LOCKED;
  *runnable = reinterpret_cast<cudaGraphExec_t>(graph);
  captured = *reinterpret_cast<Tally *>(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t stream) {
  return queue(Kind::graph, intern("cudaGraphLaunch"), stream);
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *, size_t *count) {
  *count = 0;
  for (auto &[operation, times] : reinterpret_cast<Tally *>(graph)->operations) *count += times;
  return cudaSuccess;
}

cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t, cudaGraphNode_t *, cudaGraphEdgeData *,
                                         size_t *count) {
  *count = 0;
  return cudaSuccess;
}

cudaError_t cudaGraphAddNode(cudaGraphNode_t *node, cudaGraph_t, const cudaGraphNode_t *,
                             const cudaGraphEdgeData *, size_t, cudaGraphNodeParams *) {
  *node = reinterpret_cast<cudaGraphNode_t>(1);
  return cudaSuccess;
}

cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle *handle, cudaGraph_t,
                                             unsigned, unsigned) {
  *handle = 1;
  return cudaSuccess;
}

cudaError_t cudaUserObjectCreate(cudaUserObject_t *object, void *, cudaHostFn_t, unsigned, unsigned) {
  *object = reinterpret_cast<cudaUserObject_t>(1);
  return cudaSuccess;
}

// ------------------------------------------------------------------------------- the driver

CUresult cuDriverGetVersion(int *version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
  *count = device_count();
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int number) {
  *device = number;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice) {
  *value = attribute(which);
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned *flags, int *is_active) {
  if (flags) *flags = 0;
  if (is_active) *is_active = 1;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) {
  *context = reinterpret_cast<CUcontext>(1);
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) { return cuDevicePrimaryCtxRetain(context, 0); }

CUresult cuCtxGetDevice(CUdevice *device) {
  *device = current_device;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetLimit(size_t *value, CUlimit) {
  *value = 1 << 20;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult, const char **text) {
  *text = "an error of the stand-in";
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *module, const void *) {
  LOCKED;
  if (capture) break_capture("a kernel is loaded during a capture");
  *module = reinterpret_cast<CUmodule>(1);
  return CUDA_SUCCESS;
}

CUresult cuModuleLoad(CUmodule *module, const char *file) { return cuModuleLoadData(module, file); }

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned, CUjit_option *, void **) {
  return cuModuleLoadData(module, image);
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule, const char *name) {
  auto found = intern(std::string("triton ") + name);
  *function = reinterpret_cast<CUfunction>(const_cast<std::string *>(found));
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction) {
  *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
           : which == CU_FUNC_ATTRIBUTE_NUM_REGS            ? 64
                                                            : 0;
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned, CUstream stream, void **,
                        void **) {
  return launch_from_module(function, {x, y, z}, {block_x, block_y, block_z}, stream);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **, void **) {
  dim3 grid(config->gridDimX, config->gridDimY, config->gridDimZ);
  dim3 block(config->blockDimX, config->blockDimY, config->blockDimZ);
  return launch_from_module(function, grid, block, config->hStream);
}

CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned x, unsigned y, unsigned z,
                                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned,
                                   CUstream stream, void **) {
  return launch_from_module(function, {x, y, z}, {block_x, block_y, block_z}, stream);
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
  auto handle = reinterpret_cast<cudaStream_t>(stream);
  auto found = reinterpret_cast<cudaStreamCaptureStatus *>(status);  // of the same values
  return cudaStreamIsCapturing(handle, found) == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction, int, size_t) {
  *blocks = 2;
  return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction, const CUlaunchConfig *) {
  *clusters = 2;
  return CUDA_SUCCESS;
}

// Triton's launcher asks this of every pointer that it gives to a kernel.
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute which, CUdeviceptr pointer) {
  auto address = reinterpret_cast<const void *>(pointer);
  if (!is_usable(address, "a Triton kernel")) return CUDA_ERROR_INVALID_VALUE;
  if (which == CU_POINTER_ATTRIBUTE_DEVICE_POINTER)
    *static_cast<CUdeviceptr *>(value) = pointer;
  else
    *static_cast<int *>(value) = 0;
  return CUDA_SUCCESS;
}

// What is not here succeeds and does nothing.
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult *result) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (!*function) *function = reinterpret_cast<void *>(standin_success);
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// ------------------------------------------------------------------------------- cuBLAS

struct Blas {
  cudaStream_t stream = nullptr;
};

int cublasCreate_v2(Blas **handle) {
  *handle = new Blas;
  return 0;
}

int cublasSetStream_v2(Blas *handle, cudaStream_t stream) {
  handle->stream = stream;
  return 0;
}

int cublasGetMathMode(Blas *, int *mode) { return *mode = 0; }
int cublasGetPointerMode_v2(Blas *, int *mode) { return *mode = 0; }

#define MULTIPLIES(function) \
  int function(Blas *handle) { return queue(Kind::kernel, intern(#function), handle->stream); }

MULTIPLIES(cublasSgemm_v2)
MULTIPLIES(cublasDgemm_v2)
MULTIPLIES(cublasSgemmEx)
MULTIPLIES(cublasSgemmStridedBatched)
MULTIPLIES(cublasGemmStridedBatchedEx)
MULTIPLIES(cublasSgemv_v2)

int cublasGemmEx(Blas *handle, int, int, int, int, int, const void *, const void *a, int, int,
                 const void *b, int, int, const void *, void *c, int, int, int, int) {
  for (const void *pointer : {a, b, static_cast<const void *>(c)}) is_usable(pointer, "cublasGemmEx");
  return queue(Kind::kernel, intern("cublasGemmEx"), handle->stream);
}

struct Heuristic {  // cublasLtMatmulHeuristicResult_t
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *, void *, int,
                                   Heuristic *result, int *count) {
  memset(result, 0, sizeof *result);
  *count = 1;
  return 0;
}

int cublasLtMatmul(void *, void *, const void *, const void *a, void *, const void *b, void *,
                   const void *, const void *, void *, void *d, void *, const void *, void *,
                   size_t, cudaStream_t stream) {
  for (const void *pointer : {a, b, static_cast<const void *>(d)})
    is_usable(pointer, "cublasLtMatmul");
  return queue(Kind::kernel, intern("cublasLtMatmul"), stream);
}

}  // extern "C"
