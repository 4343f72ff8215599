/* A stand-in for NVIDIA's driver on machines without one: the calls of protos/cuda_driver.py, over memory of the host.
 *
 * A "card" has anonymous files (memfd) for memory, so that a device pointer is a host pointer, and two processes can
 * exchange some. It refuses what the driver refuses: calls outside of a context, handles that lead nowhere or into the
 * same process, giving up what was not taken so. What it says of a real driver's speed or ordering is nothing. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_HANDLE = 400 };
enum { CARDS = 2, RANGES = 64, RELAXED = 2 };
static const size_t MOST = (size_t)1 << 30;

typedef struct { int32_t pid, fd; uint64_t size; unsigned char rest[48]; } Handle;
typedef struct { uint64_t base; size_t size; int fd; } Range; /* fd -1: another process's */

static Range ranges[RANGES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int depth, mode;

static int add(size_t size, int fd, int is_own, uint64_t *base) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) return OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < RANGES; i++)
        if (!ranges[i].base) {
            ranges[i] = (Range){(uint64_t)memory, size, is_own ? fd : -1};
            *base = (uint64_t)memory;
            pthread_mutex_unlock(&lock);
            return OK;
        }
    pthread_mutex_unlock(&lock);
    return munmap(memory, size), OUT_OF_MEMORY;
}

static Range *find(uint64_t address) {
    for (int i = 0; i < RANGES; i++)
        if (ranges[i].base && address - ranges[i].base < ranges[i].size) return &ranges[i];
    return NULL;
}

static int drop(uint64_t base, int is_own) {
    if (!depth) return INVALID_CONTEXT;
    pthread_mutex_lock(&lock);
    Range *range = find(base);
    int is_right = range && range->base == base && (range->fd >= 0) == is_own;
    if (is_right) {
        munmap((void *)base, range->size);
        if (is_own) close(range->fd);
        range->base = 0;
    }
    pthread_mutex_unlock(&lock);
    return is_right ? OK : INVALID_VALUE;
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : OK; }
int cuGetErrorName(int code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT"
            : code == INVALID_HANDLE ? "CUDA_ERROR_INVALID_HANDLE" : "CUDA_ERROR_INVALID_VALUE";
    return OK;
}
int cuDeviceGetCount(int *count) { return *count = CARDS, OK; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal < CARDS ? OK : NO_DEVICE; }
int cuDeviceCanAccessPeer(int *answer, int device, int peer) { return *answer = device == peer, OK; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)(intptr_t)(device + 1), OK; }
int cuCtxPushCurrent_v2(void *context) { return depth++, context ? OK : INVALID_CONTEXT; }
int cuCtxPopCurrent_v2(void **context) { return *context = NULL, depth-- ? OK : INVALID_CONTEXT; }

int cuThreadExchangeStreamCaptureMode(int *exchanged) {
    int old = mode;
    return mode = *exchanged, *exchanged = old, OK;
}

int cuMemAlloc_v2(uint64_t *base, size_t size) {
    if (!depth || mode != RELAXED) return INVALID_CONTEXT;
    if (!size || size > MOST) return OUT_OF_MEMORY;
    int fd = memfd_create("card", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, size)) return OUT_OF_MEMORY;
    return add(size, fd, 1, base);
}
int cuMemFree_v2(uint64_t base) { return drop(base, 1); }
int cuIpcCloseMemHandle(uint64_t base) { return drop(base, 0); }

int cuMemGetAddressRange_v2(uint64_t *base, size_t *size, uint64_t address) {
    Range *range = depth ? find(address) : NULL;
    if (!range) return depth ? INVALID_VALUE : INVALID_CONTEXT;
    return *base = range->base, *size = range->size, OK;
}
int cuIpcGetMemHandle(Handle *handle, uint64_t address) {
    Range *range = depth ? find(address) : NULL;
    if (!range || range->fd < 0) return depth ? INVALID_VALUE : INVALID_CONTEXT;
    *handle = (Handle){getpid(), range->fd, range->size, {0}};
    return OK;
}
int cuIpcOpenMemHandle_v2(uint64_t *base, Handle handle, unsigned flags) {
    if (!depth || handle.pid == getpid()) return INVALID_CONTEXT;
    if (flags != 1) return INVALID_VALUE;
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", handle.pid, handle.fd);
    int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return INVALID_HANDLE;
    int result = add(handle.size, fd, 0, base);
    return close(fd), result == OK ? OK : INVALID_HANDLE;
}
