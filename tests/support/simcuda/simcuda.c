/* libcuda.so.1 in host memory, for tests: "device" memory is malloc, a "kernel" is a callback. The real pycuda runs on it.
 *
 * It proves buffers, bounds, threads, chunking, leaks, error codes and the order of work between streams (see streams.c).
 * It proves nothing about kernels, nor about races on a device.
 *
 * Any call can be made to fail (sim_fail), once, or so that the context is lost: every later call but those that make a
 * context current fails then, until the last holder releases the primary context. A call that frees does its work even
 * when told to fail: the driver's documentation says of such calls that they "may also return error codes from previous,
 * asynchronous launches".
 *
 * What a probe meets is set in the environment: SIMCUDA_DRIVER (13000), SIMCUDA_DEVICES (1), SIMCUDA_CAPABILITY (86),
 * and SIMCUDA_INIT, what cuInit does: return that code, or crash (-1), or never return (-2). */
#include "simcuda.h"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEVICE, HOST, STREAM, EVENT, KINDS };
enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_CONTEXT = 201 };
enum { STACK = 64, CALLS = 1024 };
#define TOTAL ((S)8 << 30)

struct object { int kind; char *at; S size; struct object *next; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct object *objects;
static long live[KINDS], retained, reclaimed, pageable;
static S used, total = TOTAL;
static const char *calls[CALLS]; /* the names of the last calls */
static long called, fail_at;
static int fail_code, fail_loses, lost, inited;
static char primary; /* its address is the primary context's handle */
static __thread void *stack[STACK];
static __thread int depth;

/* ---- errors ------------------------------------------------------------------------------------------------- */
static int enter(const char *name) /* the code if this is the call that was told to fail */
{
    int code = 0;
    pthread_mutex_lock(&lock);
    calls[called % CALLS] = name;
    if (++called == fail_at) { code = fail_code; lost = fail_loses && retained ? fail_code : 0; }
    pthread_mutex_unlock(&lock);
    return code;
}
#define ENTER int failed = enter(__func__); if (!failed) failed = lost; if (failed) return failed
#define ENTER_CURRENT ENTER; if (!depth) return INVALID_CONTEXT
/* for calls that free: no work once the context is lost, for then all goes with it; else work, whatever is returned */
#define ENTER_FREE int failed = enter(__func__); if (lost) return lost; if (!depth) return INVALID_CONTEXT

/* ---- what is alive ------------------------------------------------------------------------------------------- */
static int hold(int kind, void *at, S size)
{
    struct object *o = malloc(sizeof *o);
    *o = (struct object){kind, at, size, 0};
    pthread_mutex_lock(&lock);
    o->next = objects; objects = o; live[kind]++; if (kind == DEVICE) used += size;
    pthread_mutex_unlock(&lock);
    return 0;
}

static int let_go(int kind, void *at) /* false where no such object lives */
{
    int found = 0;
    pthread_mutex_lock(&lock);
    for (struct object **p = &objects; *p; p = &(*p)->next)
        if ((*p)->kind == kind && (*p)->at == at) {
            struct object *o = *p;
            *p = o->next; live[kind]--; if (kind == DEVICE) used -= o->size;
            free(o); found = 1;
            break;
        }
    pthread_mutex_unlock(&lock);
    return found;
}

static int inside(int kind, const void *at, S size)
{
    int found = 0;
    pthread_mutex_lock(&lock);
    for (struct object *o = objects; o && !found; o = o->next)
        found = o->kind == kind && (char *)at >= o->at && (char *)at + size <= o->at + o->size;
    pthread_mutex_unlock(&lock);
    return found;
}

/* ---- for the tests ------------------------------------------------------------------------------------------- */
void sim_fail(long nth, int code, int loses_context) /* the nth call from now; 0: none */
{ fail_at = nth ? called + nth : 0; fail_code = code; fail_loses = loses_context; }
long sim_called(void) { return called; }
const char *sim_call(long i) { return i < called && i >= called - CALLS ? calls[i % CALLS] : 0; }
void sim_memory(S bytes) { total = bytes ? bytes : TOTAL; }
/* device buffers, host buffers, streams, events, primary context's holders, this thread's context stack,
 * objects that the context took with it, asynchronous copies of memory that was not pinned */
long sim_live(int what)
{ return what < KINDS ? live[what] : what == 4 ? retained : what == 5 ? depth : what == 6 ? reclaimed : pageable; }

/* ---- the driver and its devices ------------------------------------------------------------------------------- */
static int set(const char *name, int otherwise) { const char *s = getenv(name); return s ? atoi(s) : otherwise; }
int cuInit(unsigned flags)
{
    ENTER;
    int told = set("SIMCUDA_INIT", 0);
    if (told == -1) raise(SIGSEGV);
    while (told == -2) pause();
    inited = !told;
    return told;
}
int cuDriverGetVersion(int *v) { *v = set("SIMCUDA_DRIVER", 13000); return 0; }
int cuGetErrorString(int e, const char **p)
{ static __thread char b[32]; snprintf(b, sizeof b, "simulated error %d", e); *p = b; return 0; }
int cuDeviceGetCount(int *n) { ENTER; if (!inited) return NOT_INITIALIZED; *n = set("SIMCUDA_DEVICES", 1); return 0; }
int cuDeviceGet(int *d, int i) { ENTER; if (!inited) return NOT_INITIALIZED; if (i) return INVALID_DEVICE; *d = 0; return 0; }
int cuDeviceGetName(char *s, int n, int d) { ENTER; snprintf(s, n, "simulated device"); return 0; }
int cuDeviceGetPCIBusId(char *s, int n, int d) { ENTER; snprintf(s, n, "0000:00:00.0"); return 0; }
int cuDeviceTotalMem_v2(S *n, int d) { ENTER; *n = total; return 0; }
static int capability(void) { return set("SIMCUDA_CAPABILITY", 86); }
int cuDeviceComputeCapability(int *a, int *b, int d)
{ ENTER; *a = capability() / 10; *b = capability() % 10; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d)
{ ENTER; *v = a == 75 ? capability() / 10 : a == 76 ? capability() % 10 : 1; return 0; }

/* ---- contexts ------------------------------------------------------------------------------------------------- */
static void destroy(void *at, int kind) { if (kind == STREAM) stream_free(at); else free(at); }

int cuDevicePrimaryCtxRetain(void **c, int d) { ENTER; retained++; *c = &primary; return 0; }
int cuDevicePrimaryCtxRelease_v2(int d)
{
    int failed = enter(__func__);
    if (!retained) return INVALID_CONTEXT;
    if (--retained == 0) {
        while (objects) {
            void *at = objects->at; int kind = objects->kind;
            let_go(kind, at); destroy(at, kind); reclaimed++;
        }
        lost = 0;
    }
    return failed;
}
int cuCtxPushCurrent_v2(void *c) { int failed = enter(__func__); if (failed) return failed; if (depth == STACK) return INVALID_CONTEXT; stack[depth++] = c; return 0; }
int cuCtxPopCurrent_v2(void **c)
{ int failed = enter(__func__); if (failed) return failed; if (!depth) return INVALID_CONTEXT; *c = stack[--depth]; return 0; }
int cuCtxGetDevice(int *d) { ENTER_CURRENT; *d = 0; return 0; }
int cuCtxGetApiVersion(void *c, unsigned *v) { ENTER; *v = 13000; return 0; }
int cuCtxSynchronize(void) { ENTER_CURRENT; stream_drain_all(); return 0; }

/* ---- memory --------------------------------------------------------------------------------------------------- */
int cuMemGetInfo_v2(S *f, S *t) { ENTER_CURRENT; *t = total; *f = total - used; return 0; }
int cuMemAlloc_v2(P *p, S n)
{
    ENTER_CURRENT;
    void *m;
    if (used + n > total || posix_memalign(&m, 256, n ? n : 1)) return OUT_OF_MEMORY;
    memset(m, 0xCD, n); /* so that what was never written shows */
    *p = (P)m;
    return hold(DEVICE, m, n);
}
int cuMemFree_v2(P p)
{ ENTER_FREE; stream_drain_all(); if (!let_go(DEVICE, (void *)p)) return INVALID_VALUE; free((void *)p); return failed; }
int cuMemHostAlloc(void **p, S n, unsigned flags)
{ ENTER_CURRENT; if (posix_memalign(p, 4096, n ? n : 1)) return OUT_OF_MEMORY; memset(*p, 0xCD, n); return hold(HOST, *p, n); }
int cuMemFreeHost(void *p)
{ ENTER_FREE; stream_drain_all(); if (!let_go(HOST, p)) return INVALID_VALUE; free(p); return failed; }
int cuMemHostGetDevicePointer_v2(P *d, void *h, unsigned flags) { ENTER_CURRENT; *d = (P)h; return 0; }

int cuMemcpyHtoD_v2(P d, const void *s, S n)
{ ENTER_CURRENT; if (!inside(DEVICE, (void *)d, n)) return INVALID_VALUE; memcpy((void *)d, s, n); return 0; }
int cuMemcpyDtoH_v2(void *d, P s, S n)
{ ENTER_CURRENT; if (!inside(DEVICE, (void *)s, n)) return INVALID_VALUE; memcpy(d, (void *)s, n); return 0; }
int cuMemcpyHtoDAsync_v2(P d, const void *s, S n, struct stream *t)
{
    ENTER_CURRENT;
    if (!inside(DEVICE, (void *)d, n)) return INVALID_VALUE;
    pageable += !inside(HOST, s, n);
    return stream_copy(t, (void *)d, s, n);
}
int cuMemcpyDtoHAsync_v2(void *d, P s, S n, struct stream *t)
{
    ENTER_CURRENT;
    if (!inside(DEVICE, (void *)s, n)) return INVALID_VALUE;
    pageable += !inside(HOST, d, n);
    return stream_copy(t, d, (void *)s, n);
}

/* ---- streams and events --------------------------------------------------------------------------------------- */
int cuStreamCreate(struct stream **s, unsigned flags) { ENTER_CURRENT; *s = stream_new(); return hold(STREAM, *s, 0); }
int cuStreamDestroy_v2(struct stream *s)
{ ENTER_FREE; if (!let_go(STREAM, s)) return INVALID_VALUE; stream_drain(s); stream_free(s); return failed; }
int cuStreamSynchronize(struct stream *s) { ENTER_CURRENT; stream_drain(s); return 0; }
int cuStreamQuery(struct stream *s) { ENTER_CURRENT; stream_drain(s); return 0; }
int cuStreamWaitEvent(struct stream *s, struct event *e, unsigned flags) { ENTER_CURRENT; return stream_wait(s, e); }
int cuEventCreate(struct event **e, unsigned flags) { ENTER_CURRENT; *e = event_new(); return hold(EVENT, *e, 0); }
int cuEventDestroy_v2(struct event *e)
{ ENTER_FREE; if (!let_go(EVENT, e)) return INVALID_VALUE; event_finish(e); free(e); return failed; }
int cuEventRecord(struct event *e, struct stream *s) { ENTER_CURRENT; return stream_record(s, e); }
int cuEventSynchronize(struct event *e) { ENTER_CURRENT; event_finish(e); return 0; }
int cuEventQuery(struct event *e) { ENTER_CURRENT; event_finish(e); return 0; }
int cuEventElapsedTime_v2(float *t, void *a, void *b) { ENTER; *t = 0; return 0; }
