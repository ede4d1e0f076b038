/* The arithmetic of orders (randomness.py, draws.py), number by number. Optional: numpy finds the
 * same without it. Who calls has looked at types and lengths. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>

#define ROUNDS 12
#define LANES 64 /* positions side by side: one alone would wait for each product of its rounds */
#define FAN 64   /* numbers in a row */
#define KNOWN 64 /* schedules at hand: of all classes that positions come from in turn */
#if defined(__x86_64__) && defined(__gnu_linux__) && __GNUC__ >= 12 && !defined(__clang__)
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define WIDE
#endif

/* What a size and a key say: parts a and b of the domain, then of each round a summand and a factor */
typedef struct {
    uint64_t key;
    uint32_t n, words[2 + 2 * ROUNDS];
} Schedule;

typedef struct {
    uint64_t key[LANES];
    uint32_t n[LANES], word[LANES], words[2 + 2 * ROUNDS][LANES];
} Lanes;

static void prepare(Schedule *s, uint32_t n, uint64_t key, const uint64_t *multipliers)
{
    uint32_t a = (uint32_t)ceil(sqrt((double)n));

    s->n = n;
    s->key = key;
    s->words[0] = a;
    s->words[1] = (n - 1) / a + 1;
    for (int r = 0; r < 2 * ROUNDS; r++)
        s->words[2 + r] = (uint32_t)(key * multipliers[r] >> 32) | (r & 1);
}

/* One pass of the network over all lanes, as `_encipher` has it. */
WIDE static void encipher(Lanes *lanes)
{
    uint32_t left[LANES], right[LANES];
    const uint32_t *b = lanes->words[1];

    for (int i = 0; i < LANES; i++)
        left[i] = lanes->word[i] / b[i];
    for (int i = 0; i < LANES; i++)
        right[i] = lanes->word[i] - left[i] * b[i];
    for (int r = 0; r < ROUNDS; r++) {
        const uint32_t *a = lanes->words[r & 1], *added = lanes->words[2 + 2 * r];
        const uint32_t *factor = lanes->words[3 + 2 * r];

        for (int i = 0; i < LANES; i++) {
            uint32_t h = (right[i] + added[i]) * factor[i];

            h = (((h ^ h >> 15) * 0x7F4A7C15u >> 16) * a[i] >> 16) + left[i];
            left[i] = right[i];
            right[i] = h < h - a[i] ? h : h - a[i]; /* modulo: the other one wraps around */
        }
    }
    for (int i = 0; i < LANES; i++)
        lanes->word[i] = left[i] * b[i] + right[i];
}

/* A lane leaves a pass with an image, and takes the next position; or it goes through again. */
static void permute_all(
    const int64_t *positions, const int64_t *sizes, int each_size, const uint64_t *keys,
    int each_key, const uint64_t *multipliers, int64_t *images, Py_ssize_t count)
{
    Schedule known[KNOWN], *first;
    Lanes lanes;
    Py_ssize_t place[LANES], next = 0, done = 0;

    if (!count)
        return;
    for (int i = 0; i < KNOWN; i++)
        known[i].n = 0;
    first = &known[keys[0] % KNOWN];
    prepare(first, (uint32_t)sizes[0], keys[0], multipliers); /* often that of all positions */
    for (int i = 0; i < LANES; i++) {
        lanes.key[i] = first->key;
        lanes.n[i] = first->n;
        lanes.word[i] = 0;
        place[i] = -1;
    }
    for (int r = 0; r < 2 + 2 * ROUNDS; r++)
        for (int i = 0; i < LANES; i++)
            lanes.words[r][i] = first->words[r];
    while (done < count) {
        for (int i = 0; i < LANES && next < count; i++) {
            if (place[i] >= 0)
                continue;
            uint32_t n = (uint32_t)sizes[each_size * next];
            uint64_t key = keys[each_key * next];
            Schedule *s = &known[key % KNOWN];

            if (lanes.key[i] != key || lanes.n[i] != n) {
                if (s->key != key || s->n != n)
                    prepare(s, n, key, multipliers);
                lanes.key[i] = key;
                lanes.n[i] = n;
                for (int r = 0; r < 2 + 2 * ROUNDS; r++)
                    lanes.words[r][i] = s->words[r];
            }
            lanes.word[i] = (uint32_t)positions[next];
            place[i] = next++;
        }
        encipher(&lanes);
        for (int i = 0; i < LANES; i++)
            if (place[i] >= 0 && lanes.word[i] < lanes.n[i]) {
                images[place[i]] = lanes.word[i];
                place[i] = -1;
                done++;
            }
    }
}

const char permute_doc[] =
    "permute(positions, sizes, keys, multipliers, images)\n\n"
    "`randomness.permute` for sizes below 2^32. Shape: (P,) int64, (P,) or (1,) int64, (P,) or (1,)\n"
    "uint64, (24,) uint64, (P,) int64 to be written to.";

PyObject *permute(PyObject *self, PyObject *args)
{
    Py_buffer positions, sizes, keys, multipliers, images;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*y*w*", &positions, &sizes, &keys, &multipliers, &images))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    permute_all(
        positions.buf, sizes.buf, sizes.len > 8, keys.buf, keys.len > 8, multipliers.buf,
        images.buf, images.len / 8);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&positions);
    PyBuffer_Release(&sizes);
    PyBuffer_Release(&keys);
    PyBuffer_Release(&multipliers);
    PyBuffer_Release(&images);
    Py_RETURN_NONE;
}

/* As `Spans` has it: a guess, mostly right or one too low. */
static int64_t span_of(double value, const double *edges, int64_t count, int64_t guess)
{
    int64_t low = 0, high = count;

    guess += value >= edges[guess + 1];
    if (value >= edges[guess] && value < edges[guess + 1])
        return guess;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;

        if (value >= edges[middle])
            low = middle;
        else
            high = middle;
    }
    return low;
}

const char locate_doc[] =
    "locate(values, edges, guide, scale, spans)\n\n"
    "Which span between `edges` each value falls into, from the guess in `guide` at value * scale.\n"
    "Shape: (P,) float64, (S + 1,) float64, (G,) uint32, a number, (P,) int64 to be written to.";

PyObject *locate(PyObject *self, PyObject *args)
{
    Py_buffer values, edges, guide, spans;
    double scale;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*dw*", &values, &edges, &guide, &scale, &spans))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    const double *value = values.buf;
    const uint32_t *guesses = guide.buf;
    int64_t *span = spans.buf;

    for (Py_ssize_t i = 0; i < spans.len / 8; i++)
        span[i] = span_of(
            value[i], edges.buf, edges.len / 8 - 1, guesses[(int64_t)(value[i] * scale)]);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&values);
    PyBuffer_Release(&edges);
    PyBuffer_Release(&guide);
    PyBuffer_Release(&spans);
    Py_RETURN_NONE;
}

/* By the last of every 16 numbers, which are few and near, then among 16: one line of the cache. */
WIDE static void count_all(
    const float *rows, const float *heads, const int64_t *of, const float *values, int64_t *places,
    Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        const float *head = heads + FAN / 16 * of[i];

        places[i] = FAN * of[i]
            + 16 * ((head[0] <= values[i]) + (head[1] <= values[i]) + (head[2] <= values[i]));
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        const float *some = rows + places[i];
        const float *soon = rows + places[i + 16 < count ? i + 16 : i];
        int32_t below = 0;

        __builtin_prefetch(soon); /* these 64 bytes may lie in two lines */
        __builtin_prefetch(soon + 15);
        for (int n = 0; n < 16; n++)
            below += some[n] <= values[i];
        places[i] += below;
    }
}

const char count_doc[] =
    "count(rows, heads, of, values, places)\n\n"
    "How many numbers in rows up to `of`, all of those before it, are no larger than the value;\n"
    "row `of` rises, and its last number is larger. `heads` are the last of every 16 numbers.\n"
    "Shape: (R, 64) float32, (R, 4) float32, (P,) int64, (P,) float32, (P,) int64 to be written to.";

PyObject *count(PyObject *self, PyObject *args)
{
    Py_buffer rows, heads, of, values, places;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*y*w*", &rows, &heads, &of, &values, &places))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    count_all(rows.buf, heads.buf, of.buf, values.buf, places.buf, places.len / 8);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&rows);
    PyBuffer_Release(&heads);
    PyBuffer_Release(&of);
    PyBuffer_Release(&values);
    PyBuffer_Release(&places);
    Py_RETURN_NONE;
}
