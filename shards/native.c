/* The copy from memory maps to a batch. Optional: where nobody could compile this when the package
 * was installed, reads do the same (read.py). */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define AHEAD 256 /* bytes */

/* A page of a map that cannot be read (its file was truncated, its disk is broken) is SIGBUS. Where
 * this thread goes on if that happens while it copies; else the signal is not ours. Static storage,
 * because a signal handler may not allocate. */
static _Thread_local sigjmp_buf *escape __attribute__((tls_model("initial-exec")));
static struct sigaction before; /* whoever else handles the signal */

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    (void)context;
    if (escape && info->si_code > 0)
        siglongjmp(*escape, 1);
    sigaction(number, &before, NULL); /* on return the same instruction faults again, for them; */
    memset(&before, 0, sizeof before); /* if that ends here once more, nobody handles it */
    if (info->si_code <= 0)
        raise(number); /* sent by a process: no instruction would repeat it */
}

/* At every call: others (faulthandler) may have put theirs in the place of ours. */
static void handle_bus_errors(void)
{
    struct sigaction ours = {.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK}, found;

    sigaction(SIGBUS, NULL, &found);
    if ((found.sa_flags & SA_SIGINFO) && found.sa_sigaction == on_bus_error)
        return;
    before = found;
    ours.sa_sigaction = on_bus_error;
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, NULL);
}

#ifdef __x86_64__
/* 64 bytes past the cache: a batch is larger than it, and lines that are overwritten need not be
 * read. */
__attribute__((target("avx2"))) static inline void stream(char *to, const char *from)
{
    __m256i left = _mm256_loadu_si256((const __m256i *)from);
    __m256i right = _mm256_loadu_si256((const __m256i *)(from + 32));

    _mm256_stream_si256((__m256i *)to, left);
    _mm256_stream_si256((__m256i *)(to + 32), right);
}

/* Both halves at once, from two places of the memory. The processor's own prefetch ends with each
 * page, so ours goes ahead of it, and from the end of a half to that of what comes `next`. The pages
 * of that are looked up all at once: side by side they take little longer than one, and where
 * samples are scattered that is what each costs more. */
__attribute__((target("avx2"))) static void copy_halves(
    char *to, const char *from, const char *next, size_t size)
{
    size_t head = -(uintptr_t)to % 64, half = size < head ? 0 : (size - head) / 128 * 64;

    head = half ? head : 0;
    memcpy(to, from, head);
    to += head, from += head, size -= head;
    for (size_t page = 0; page < size; page += 4096)
        _mm_prefetch(next + page, _MM_HINT_T2);
    for (size_t n = 0; n < half; n += 64) {
        const char *ahead = n + AHEAD < half ? from + n + AHEAD : next + n + AHEAD - half;

        _mm_prefetch(ahead, _MM_HINT_T0);
        _mm_prefetch(ahead + half, _MM_HINT_T0);
        stream(to + n, from + n);
        stream(to + half + n, from + half + n);
    }
    memcpy(to + 2 * half, from + 2 * half, size - 2 * half);
}
#endif

static void copy_one(char *to, const char *from, const char *next, size_t size)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2")) {
        copy_halves(to, from, next, size);
        return;
    }
#endif
    (void)next;
    memcpy(to, from, size);
}

/* How many of the copies could be made, one after the other; without the GIL. */
static Py_ssize_t copy_all(
    void *const *to, const void *const *from, Py_ssize_t count, size_t size)
{
    volatile Py_ssize_t done = 0; /* as it was when the signal came */
    sigjmp_buf here;

    if (sigsetjmp(here, 0) == 0) {
        escape = &here;
        for (; done < count; done++)
            copy_one((char *)to[done], from[done], from[done + (done + 1 < count)], size);
    }
    escape = NULL;
#ifdef __x86_64__
    _mm_sfence(); /* what went past the cache is seen by whoever is told of it */
#endif
    return done;
}

PyDoc_STRVAR(copy_doc,
"copy(targets, sources, size) -> int\n\n"
"Copy `size` bytes from each address of `sources` to that of `targets` (both (P,) uintp), until\n"
"one cannot be read. How many were copied.");

static PyObject *copy(PyObject *self, PyObject *args)
{
    Py_buffer targets, sources;
    Py_ssize_t size, count;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*n", &targets, &sources, &size))
        return NULL;
    count = (targets.len < sources.len ? targets.len : sources.len) / (Py_ssize_t)sizeof(void *);
    handle_bus_errors();
    Py_BEGIN_ALLOW_THREADS
    count = copy_all(targets.buf, sources.buf, count, size);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&targets);
    PyBuffer_Release(&sources);
    return PyLong_FromSsize_t(count);
}

PyDoc_STRVAR(take_doc,
"take(array, places, out) -> int\n\n"
"Copy rows of an array, (n, ...), (P,) int64, (P, ...), until one cannot be read or is not there.\n"
"How many were copied.");

static PyObject *take(PyObject *self, PyObject *args)
{
    Py_buffer array, places, out;
    Py_ssize_t size, count, known = 0, done = 0;
    void **addresses;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*w*", &array, &places, &out))
        return NULL;
    count = places.len / (Py_ssize_t)sizeof(int64_t);
    size = count ? out.len / count : 0;
    addresses = PyMem_Malloc(2 * sizeof(void *) * (size_t)(count + 1));
    if (addresses && size) {
        const int64_t *place = places.buf;
        const uint64_t rows = (uint64_t)(array.len / size);

        for (; known < count && (uint64_t)place[known] < rows; known++) {
            addresses[known] = (char *)out.buf + known * size;
            addresses[count + known] = (char *)array.buf + place[known] * size;
        }
        handle_bus_errors();
        Py_BEGIN_ALLOW_THREADS
        done = copy_all(addresses, (const void *const *)addresses + count, known, size);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&array);
    PyBuffer_Release(&places);
    PyBuffer_Release(&out);
    if (!addresses)
        return PyErr_NoMemory();
    PyMem_Free(addresses);
    return PyLong_FromSsize_t(done);
}

extern const char permute_doc[], locate_doc[], count_doc[]; /* draws.c */
PyObject *permute(PyObject *, PyObject *), *locate(PyObject *, PyObject *);
PyObject *count(PyObject *, PyObject *);

static PyMethodDef methods[] = {
    {"copy", copy, METH_VARARGS, copy_doc},
    {"take", take, METH_VARARGS, take_doc},
    {"permute", permute, METH_VARARGS, permute_doc},
    {"locate", locate, METH_VARARGS, locate_doc},
    {"count", count, METH_VARARGS, count_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "shards._native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModule_Create(&module);
}
