/* A model's layers on a CPU: bfloat16 with float32 sums, weights in bfloat16 or int8.
 *
 * A step of few tokens is bound by reading weights once, and then by the number of calls: so a whole attention layer,
 * or all experts of a dispatch, are one call. Weights lie as [out, in] rows. Shapes: T tokens, D width, H query heads in
 * G groups, C head size, E experts, F their inner width, O and I the outputs and inputs of any weight.
 *
 *   numbers     bfloat16, exponentials, sums of vectors
 *   products    rows of a weight with tokens, few or many
 *   threads     who takes which chunk of a call
 *   linear, experts, attention     the calls, at the end of their sections
 */
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <immintrin.h>
#ifndef __AVX512F__
#error "written for 512-bit vectors: on narrower ones torch's operators are faster"
#endif

#define INLINE static inline __attribute__((always_inline))
#define VECTOR(type) type __attribute__((vector_size(64), aligned(2), may_alias))

typedef uint16_t bf16;
typedef VECTOR(float) floats;   /* 16 numbers */
typedef VECTOR(int32_t) ints;
typedef VECTOR(uint32_t) pairs; /* 32 bfloat16 numbers, or 64 of 8 bits */
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));

enum {
    VECTOR_BYTES = 64,
    ROWS = 4,          /* rows of a weight at once: their sums are added up together */
    CHUNK_ROWS = 32,   /* rows of a weight that a thread takes at a time */
    AHEAD = 8192,      /* bytes of a weight that are fetched ahead of their use, past the caches that Python needs */
    PIECE = 256,       /* tokens that a chunk of a weight is multiplied with at a time */
    TILE = 64,         /* keys whose scores are in memory at once */
    QUERIES = 96,      /* rows of queries that read a tile together */
    WORTH_PACKING = 12, /* rows of queries from which a tile is put in another order first */
    MOST_HEAD = 256,   /* numbers of a head */
    MOST_EXPERTS = 1024,
    BLOCK = 6,         /* tokens at once: as many sums as registers hold */
};

/* ---- numbers ---- */

INLINE float widen(bf16 x)
{
    union { uint32_t bits; float number; } u = {(uint32_t)x << 16};
    return u.number;
}

INLINE bf16 narrow(float x) /* to nearest, ties to even; a NaN stays one */
{
    union { float number; uint32_t bits; } u = {x};
    if (x != x) return (bf16)(u.bits >> 16 | 64);
    return (bf16)((u.bits + 0x7fff + (u.bits >> 16 & 1)) >> 16);
}

INLINE floats choose(ints mask, floats yes, floats no)
{
    return (floats)(((ints)yes & mask) | ((ints)no & ~mask));
}

typedef uint16_t halves __attribute__((vector_size(32), aligned(2), may_alias));

INLINE pairs spread16(const bf16 *x) /* one to a lane, in its lower half */
{
    return __builtin_convertvector(*(const halves *)x, pairs);
}

INLINE floats widen16(const bf16 *x) { return (floats)(spread16(x) << 16); }

INLINE void narrow16(bf16 *out, floats x)
{
#ifdef __AVX512BF16__
    *(halves *)out = (halves)_mm512_cvtneps_pbh((__m512)x);
#else
    const pairs bits = (pairs)x, even = bits >> 16 & 1;
    const pairs rounded = (bits + 0x7fff + even) >> 16, not_a_number = bits >> 16 | 64;
    *(halves *)out = __builtin_convertvector((pairs)choose(x == x, (floats)rounded, (floats)not_a_number), halves);
#endif
}

INLINE floats exp16(floats x) /* relative error below 3e-7 up to 87; 0 below -87 */
{
    const floats scaled = x * 1.44269504f;
    const floats whole = (floats)_mm512_roundscale_ps((__m512)scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const floats part = (scaled - whole) * 0.69314718f; /* in [-0.35, 0.35] */
    floats sum = part * (1.0f / 720) + 1.0f / 120;
    sum = sum * part + 1.0f / 24;
    sum = sum * part + 1.0f / 6;
    sum = sum * part + 0.5f;
    sum = sum * part + 1.0f;
    sum = sum * part + 1.0f;
    const floats power = (floats)_mm512_scalef_ps((__m512)sum, (__m512)whole);
    return choose(x <= -87.0f, (floats){}, power); /* a NaN stays one */
}

INLINE floats rough_exp16(floats x) /* relative error below 5e-5, for x <= 0 that is a number or NaN */
{
    const floats scaled = x * 1.44269504f;
    const floats whole = (floats)_mm512_roundscale_ps((__m512)scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const floats part = (scaled - whole) * 0.69314718f; /* in [-0.35, 0.35] */
    floats sum = part * (1.0f / 24) + 1.0f / 6;
    sum = sum * part + 0.5f;
    sum = sum * part + 1.0f;
    sum = sum * part + 1.0f;
    return (floats)_mm512_scalef_ps((__m512)sum, (__m512)whole);
}

INLINE float total(floats x) { return _mm512_reduce_add_ps((__m512)x); }

/* What weights are: rows of bfloat16, or of signed bytes, which are multiplied by unsigned ones. */
typedef enum { BFLOAT16, INT8 } Kind;

/* Add the products of two vectors, by 32-bit lanes; int8 sums are integers in a vector of floats. */
INLINE floats multiply_add(const Kind kind, floats sum, pairs weight, pairs x)
{
#ifdef __AVX512VNNI__
    if (kind == INT8) return (floats)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)weight);
#endif
#ifdef __AVX512BF16__
    return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weight, (__m512bh)x);
#else
    const pairs high = (pairs){} + 0xffff0000u;
    return sum + (floats)(weight << 16) * (floats)(x << 16) + (floats)(weight & high) * (floats)(x & high);
#endif
}

INLINE floats add(const Kind kind, floats a, floats b)
{
    if (kind == INT8) return (floats)((ints)a + (ints)b);
    return a + b;
}

/* The four totals of four vectors: half as many shuffles as one after the other. */
INLINE four totals(const Kind kind, floats a, floats b, floats c, floats d)
{
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#define LOW 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define HIGH 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#define EVEN 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define ODD 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define SECOND 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15
#define FOURTH 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7
    const floats ab = add(kind, SHUFFLE(a, b, LOW), SHUFFLE(a, b, HIGH));
    const floats cd = add(kind, SHUFFLE(c, d, LOW), SHUFFLE(c, d, HIGH));
    const floats quarters = add(kind, SHUFFLE(ab, cd, EVEN), SHUFFLE(ab, cd, ODD));
    const floats halves = add(kind, quarters, SHUFFLE(quarters, quarters, SECOND));
    const floats whole = add(kind, halves, SHUFFLE(halves, halves, FOURTH));
    return __builtin_shufflevector(whole, whole, 0, 1, 2, 3);
}

/* ---- products ---- */

/* Products of four rows with N tokens, all of `width` bytes: out[token][row]. Fetches P rows more, that come next. The
 * kind, N and P are known when this is compiled. */
INLINE void dot_block(const Kind kind, const int N, const int P, const char *const rows[ROWS], const char *x,
                      long x_stride, long width, const char *next, float *out, long out_stride)
{
    floats sums[ROWS][BLOCK] = {};
    for (long k = 0; k < width; k += VECTOR_BYTES) {
        pairs w[ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) w[r] = *(const pairs *)(rows[r] + k);
#pragma GCC unroll 2
        for (int p = 0; p < P; p++) __builtin_prefetch(next + p * width + k, 0, 0);
#pragma GCC unroll 6
        for (int n = 0; n < N; n++) {
            const pairs token = *(const pairs *)(x + n * x_stride + k);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) sums[r][n] = multiply_add(kind, sums[r][n], w[r], token);
        }
    }
#pragma GCC unroll 6
    for (int n = 0; n < N; n++)
        *(four *)(out + n * out_stride) = totals(kind, sums[0][n], sums[1][n], sums[2][n], sums[3][n]);
}

/* Tokens in blocks of like size. `next` are four rows to be fetched meanwhile, a part with every block; or NULL. */
INLINE void dot_rows(const Kind kind, const char *const rows[ROWS], const char *x, long x_stride, long num_tokens,
                     long width, const char *next, float *out, long out_stride)
{
    const long num_blocks = (num_tokens + BLOCK - 1) / BLOCK, at_once = num_blocks < ROWS ? 2 : 1;
    for (long block = 0, done = 0; block < num_blocks; block++) {
        const long blocks_left = num_blocks - block, size = (num_tokens - done + blocks_left - 1) / blocks_left;
        const char *tokens = x + done * x_stride, *fetched = next + block * at_once * width;
        float *sums = out + done * out_stride;
        const long fetches = next && block * at_once < ROWS ? at_once : 0;
#define CASE(N)                                                                                                       \
    case N:                                                                                                           \
        if (fetches == 2) dot_block(kind, N, 2, rows, tokens, x_stride, width, fetched, sums, out_stride);            \
        else if (fetches) dot_block(kind, N, 1, rows, tokens, x_stride, width, fetched, sums, out_stride);            \
        else dot_block(kind, N, 0, rows, tokens, x_stride, width, fetched, sums, out_stride);                         \
        break;
        switch (size) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
        done += size;
    }
}

/* The same for rows that lie one after the other, read in the order of memory: for so few tokens that reading is all
 * that counts. On an AMD EPYC (Zen 5) a core reads 35 instead of 27 GB/s, and two cores 48 instead of 36. */
INLINE void dot_stream(const Kind kind, const int N, const char *weight, const char *x, long width, float *out,
                       long out_stride)
{
    floats sums[ROWS][BLOCK] = {};
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
        for (long k = 0; k < width; k += VECTOR_BYTES) {
            const char *place = weight + r * width + k;
            const pairs w = *(const pairs *)place;
            __builtin_prefetch(place + AHEAD, 0, 0);
#pragma GCC unroll 6
            for (int n = 0; n < N; n++)
                sums[r][n] = multiply_add(kind, sums[r][n], w, *(const pairs *)(x + n * width + k));
        }
#pragma GCC unroll 6
    for (int n = 0; n < N; n++)
        *(four *)(out + n * out_stride) = totals(kind, sums[0][n], sums[1][n], sums[2][n], sums[3][n]);
}

/* Four consecutive rows of a weight with every token. */
INLINE void dot_weight(const Kind kind, const char *weight, const char *x, long num_tokens, long width, float *out,
                       long out_stride)
{
    switch (num_tokens) {
#define CASE(N)                                                                                                       \
    case N: dot_stream(kind, N, weight, x, width, out, out_stride); return;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5)
#undef CASE
    }
    const char *const rows[ROWS] = {weight, weight + width, weight + 2 * width, weight + 3 * width};
    dot_rows(kind, rows, x, width, num_tokens, width, weight + ROWS * width, out, out_stride);
}

static void dot_bfloat16(const char *weight, const char *x, long num_tokens, long width, float *out, long out_stride)
{
    dot_weight(BFLOAT16, weight, x, num_tokens, width, out, out_stride);
}

static void dot_int8(const char *weight, const char *x, long num_tokens, long width, float *out, long out_stride)
{
    dot_weight(INT8, weight, x, num_tokens, width, out, out_stride);
}

typedef struct {
    const char *rows;       /* [O, I] */
    const float *scale;     /* [O] of int8; NULL: bfloat16 */
    const int32_t *sums;    /* [O]: of a row of int8 */
    long height, width;     /* O, I */
} Weight;

typedef struct {
    const char *rows;   /* [T, I]: bfloat16, or bytes of which MIDDLE stands for zero */
    const float *scale; /* [T] of bytes */
} Tokens;

enum { MIDDLE = 128, MOST_CODE = 127 };

INLINE Kind kind_of(const Weight *w) { return w->scale ? INT8 : BFLOAT16; }

INLINE long row_bytes(const Weight *w) { return w->width * (w->scale ? 1 : sizeof(bf16)); }

/* Up to CHUNK_ROWS rows of a weight with up to PIECE tokens, as float32: out[token][row]. */
static void multiply_chunk(const Weight *w, long start, long count, Tokens x, long first, long num_tokens,
                           float out[][CHUNK_ROWS])
{
    const long width = row_bytes(w);
    const char *rows = w->rows + start * width, *tokens = x.rows + first * width;
    for (long row = 0; row < count; row += ROWS) {
        if (kind_of(w) == INT8) dot_int8(rows + row * width, tokens, num_tokens, width, &out[0][row], CHUNK_ROWS);
        else dot_bfloat16(rows + row * width, tokens, num_tokens, width, &out[0][row], CHUNK_ROWS);
    }
    if (kind_of(w) == INT8)
        for (long t = 0; t < num_tokens; t++)
            for (long r = 0; r < count; r++) {
                const int32_t sum = ((int32_t *)out[t])[r] - MIDDLE * w->sums[start + r];
                out[t][r] = sum * x.scale[first + t] * w->scale[start + r];
            }
}

/* Round a row to bytes around MIDDLE, so that its greatest number becomes MOST_CODE away from it. Returns the scale: of a
 * row with a NaN or an infinity a NaN, so that all its products are. */
static float quantize(const bf16 *x, long width, uint8_t *codes)
{
    __m512 most = _mm512_setzero_ps();
    floats broken = {};
    for (long i = 0; i < width; i += 16) {
        const floats numbers = widen16(x + i);
        most = _mm512_max_ps(most, _mm512_abs_ps((__m512)numbers));
        broken += numbers * 0.0f;
    }
    const float scale = (_mm512_reduce_max_ps(most) + total(broken)) / MOST_CODE;
    const float inverse = scale > 0 ? 1 / scale : 0;
    for (long i = 0; i < width; i += 16) {
        const __m512i code = _mm512_cvtps_epi32((__m512)(widen16(x + i) * inverse));
        _mm_storeu_si128((__m128i *)(codes + i), _mm512_cvtepi32_epi8(_mm512_add_epi32(code, _mm512_set1_epi32(MIDDLE))));
    }
    return scale;
}

static void rms_norm(const bf16 *x, const bf16 *weight, long width, float eps, bf16 *out)
{
    floats squares = {};
    for (long i = 0; i < width; i += 16) squares += widen16(x + i) * widen16(x + i);
    const float scale = 1.0f / sqrtf(total(squares) / width + eps);
    for (long i = 0; i < width; i += 16) {
        narrow16(out + i, widen16(x + i) * scale);
        if (weight) narrow16(out + i, widen16(out + i) * widen16(weight + i));
    }
}

/* ---- threads ---- */

typedef void (*Task)(const void *job, long chunk);
typedef struct { Task task; const void *job; long num_chunks; } Phase;
enum { MOST_PHASES = 8, MOST_WORKERS = 63, SPINS_BEFORE_YIELD = 2000 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t begun, left;
    long num_workers, generation, num_inside, num_wanted;
    const Phase *phases; /* of the call under way, or NULL */
    long num_phases;
    long next[MOST_PHASES], done[MOST_PHASES];
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .begun = PTHREAD_COND_INITIALIZER, .left = PTHREAD_COND_INITIALIZER};
static pthread_mutex_t pool_user = PTHREAD_MUTEX_INITIALIZER;

INLINE void relax(long spins)
{
    _mm_pause();
    if (spins % SPINS_BEFORE_YIELD == SPINS_BEFORE_YIELD - 1) sched_yield();
}

/* Take chunks until none is left. A phase begins when all chunks of the one before are done, whoever did them: who
 * comes late finds nothing to do, and nobody waits for him. */
static void work(const Phase *phases, long num_phases)
{
    for (long p = 0; p < num_phases; p++) {
        const long num_chunks = phases[p].num_chunks;
        long chunk;
        while ((chunk = __atomic_fetch_add(&pool.next[p], 1, __ATOMIC_RELAXED)) < num_chunks) {
            phases[p].task(phases[p].job, chunk);
            __atomic_fetch_add(&pool.done[p], 1, __ATOMIC_RELEASE);
        }
        for (long spins = 0; __atomic_load_n(&pool.done[p], __ATOMIC_ACQUIRE) < num_chunks; spins++) relax(spins);
    }
}

static void *worker(void *number)
{
    long seen = 0;
    for (;;) {
        pthread_mutex_lock(&pool.lock);
        while (pool.generation == seen || !pool.phases || (long)number >= pool.num_wanted) {
            seen = pool.generation;
            pthread_cond_wait(&pool.begun, &pool.lock);
        }
        seen = pool.generation;
        pool.num_inside++;
        const Phase *phases = pool.phases;
        const long num_phases = pool.num_phases;
        pthread_mutex_unlock(&pool.lock);
        work(phases, num_phases);
        pthread_mutex_lock(&pool.lock);
        if (--pool.num_inside == 0) pthread_cond_signal(&pool.left);
        pthread_mutex_unlock(&pool.lock);
    }
    return NULL;
}

static void start_workers(long num_workers)
{
    if (num_workers > MOST_WORKERS) num_workers = MOST_WORKERS;
    while (pool.num_workers < num_workers) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, (void *)pool.num_workers)) return; /* fewer threads do it, too */
        pthread_detach(thread);
        pool.num_workers++;
    }
}

static void run_alone(const Phase *phases, long num_phases)
{
    for (long p = 0; p < num_phases; p++)
        for (long chunk = 0; chunk < phases[p].num_chunks; chunk++)
            phases[p].task(phases[p].job, chunk);
}

static void run(const Phase *phases, long num_phases, long num_threads)
{
    if (num_threads < 2 || pthread_mutex_trylock(&pool_user)) {
        run_alone(phases, num_phases);
        return;
    }
    start_workers(num_threads - 1);
    pthread_mutex_lock(&pool.lock);
    memset(pool.next, 0, sizeof pool.next);
    memset(pool.done, 0, sizeof pool.done);
    pool.phases = phases, pool.num_phases = num_phases, pool.num_wanted = num_threads - 1;
    pool.generation++;
    pthread_cond_broadcast(&pool.begun);
    pthread_mutex_unlock(&pool.lock);
    work(phases, num_phases);
    pthread_mutex_lock(&pool.lock);
    pool.phases = NULL;
    while (pool.num_inside) pthread_cond_wait(&pool.left, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool_user);
}

/* ---- linear ---- */

/* Store up to 16 numbers; those of a product that is added are rounded before. */
INLINE void store(bf16 *out, floats numbers, long count, const int adds)
{
    bf16 place[16];
    bf16 *target = count < 16 ? memcpy(place, out, count * sizeof(bf16)) : out;
    if (adds) {
        bf16 rounded[16];
        narrow16(rounded, numbers);
        numbers = widen16(target) + widen16(rounded);
    }
    narrow16(target, numbers);
    if (count < 16) memcpy(out, place, count * sizeof(bf16));
}

/* A chunk of a weight's rows with all tokens, rounded and stored in out [T, O]; added to what is there if `adds`. */
INLINE void multiply_rows(const Weight *w, long chunk, Tokens x, long num_tokens, bf16 *out, const int adds)
{
    const long start = chunk * CHUNK_ROWS, left = w->height - start, count = left < CHUNK_ROWS ? left : CHUNK_ROWS;
    for (long first = 0; first < num_tokens; first += PIECE) {
        const long piece = num_tokens - first < PIECE ? num_tokens - first : PIECE;
        float sums[PIECE][CHUNK_ROWS];
        multiply_chunk(w, start, count, x, first, piece, sums);
        for (long t = 0; t < piece; t++)
            for (long r = 0; r < count; r += 16)
                store(out + (first + t) * w->height + start + r, *(floats *)(sums[t] + r), count - r, adds);
    }
}

INLINE long num_chunks(long num_rows) { return (num_rows + CHUNK_ROWS - 1) / CHUNK_ROWS; }

/* Tokens that may have to be rounded to bytes first. */
typedef struct {
    const bf16 *rows; /* [T, I] */
    uint8_t *codes;   /* [T, I], and */
    float *scale;     /* [T], written here; NULL for weights of bfloat16 */
    long width;
} Input;

INLINE Tokens tokens_from(const Input *x, long first)
{
    if (x->codes) return (Tokens){(const char *)(x->codes + first * x->width), x->scale + first};
    return (Tokens){(const char *)(x->rows + first * x->width), NULL};
}

static void quantize_chunk(const void *input, long t)
{
    const Input *x = input;
    x->scale[t] = quantize(x->rows + t * x->width, x->width, x->codes + t * x->width);
}

/* Where there is nothing to round, there are no chunks of it. */
INLINE Phase quantize_phase(const Input *x, long num_tokens)
{
    return (Phase){quantize_chunk, x, x->codes ? num_tokens : 0};
}

typedef struct {
    const Weight *weight;
    Input x;
    bf16 *out; /* [T, O] */
    long num_tokens;
} Linear;

static void linear_chunk(const void *job, long chunk)
{
    const Linear *l = job;
    multiply_rows(l->weight, chunk, tokens_from(&l->x, 0), l->num_tokens, l->out, 0);
}

void herd_linear(const Linear *l, long num_threads)
{
    const Phase phases[] = {
        quantize_phase(&l->x, l->num_tokens),
        {linear_chunk, l, num_chunks(l->weight->height)},
    };
    run(phases, 2, num_threads);
}

/* Tell whether weights of int8 are known to the processor this was compiled for. */
long herd_has_int8(void)
{
#ifdef __AVX512VNNI__
    return 1;
#else
    return 0;
#endif
}

/* ---- experts: down(silu(gate(x)) * up(x)) ---- */

typedef struct {
    const Weight *gate_up; /* [2F, D], the gate's rows first */
    const Weight *down;    /* [D, F] */
    long num_tokens;
} Expert;

typedef struct {
    const Expert *experts; /* all of one kind */
    long num_experts, num_tokens;
    Input x;     /* [N, D], sorted by expert */
    Input mixed; /* [N, F] */
    bf16 *out;   /* [N, D] */
} Experts;

INLINE long first_token(const Experts *e, long expert)
{
    long first = 0;
    for (long i = 0; i < expert; i++) first += e->experts[i].num_tokens;
    return first;
}

INLINE floats silu16(floats x) /* x / (1 + exp(-x)), of exp(-|x|): it does not overflow */
{
    const floats small = exp16((floats)((ints)x | INT32_MIN));
    return x / (1 + small) * choose(x < 0, small, (floats){} + 1);
}

static void gate_up_chunk(const void *job, long chunk)
{
    const Experts *e = job;
    const long inner = e->mixed.width, number = chunk / num_chunks(inner), start = chunk % num_chunks(inner) * CHUNK_ROWS;
    const Expert *expert = e->experts + number;
    const long before = first_token(e, number);
    const Tokens x = tokens_from(&e->x, before);
    for (long first = 0; first < expert->num_tokens; first += PIECE) {
        const long piece = expert->num_tokens - first < PIECE ? expert->num_tokens - first : PIECE;
        float gates[PIECE][CHUNK_ROWS], ups[PIECE][CHUNK_ROWS];
        multiply_chunk(expert->gate_up, start, CHUNK_ROWS, x, first, piece, gates);
        multiply_chunk(expert->gate_up, inner + start, CHUNK_ROWS, x, first, piece, ups);
        for (long t = 0; t < piece; t++)
            for (long r = 0; r < CHUNK_ROWS; r += 16)
                narrow16((bf16 *)e->mixed.rows + (before + first + t) * inner + start + r,
                         silu16(*(floats *)(gates[t] + r)) * *(floats *)(ups[t] + r));
    }
}

static void down_chunk(const void *job, long chunk)
{
    const Experts *e = job;
    const long width = e->x.width, number = chunk / num_chunks(width), first = first_token(e, number);
    multiply_rows(e->experts[number].down, chunk % num_chunks(width), tokens_from(&e->mixed, first),
                  e->experts[number].num_tokens, e->out + first * width, 0);
}

void herd_experts(const Experts *e, long num_threads)
{
    const Phase phases[] = {
        quantize_phase(&e->x, e->num_tokens),
        {gate_up_chunk, e, e->num_experts * num_chunks(e->mixed.width)},
        quantize_phase(&e->mixed, e->num_tokens),
        {down_chunk, e, e->num_experts * num_chunks(e->x.width)},
    };
    run(phases, 4, num_threads);
}

/* ---- attention over pages ---- */

typedef struct {
    long num_heads, num_groups, head_size, width; /* H, G, C, D */
    long rotates, interleaved, norms_qk;
    float eps;
    const bf16 *attn_norm; /* [D] */
    const Weight *qkv;     /* [(H + 2G)C, D] */
    const Weight *o;       /* [D, HC] */
    const bf16 *ffn_norm;  /* [D] */
    const bf16 *gate;      /* [E, D]; NULL in a dense layer */
    long num_experts, num_chosen; /* E, K */
} Layer;

typedef struct {
    long token, num_tokens; /* rows of the step */
    long num_seen;          /* keys that the first of them sees; each next one sees one more */
    long first_run, num_runs;
} Reader;

typedef struct {
    long num_tokens, num_readers;
    const int64_t *slots;     /* [T]: where each token's key and value go */
    const Reader *readers;
    const int64_t (*runs)[2]; /* (first slot, number of slots) */
} Seen;

typedef struct {
    const Layer *layer;
    const Seen *seen;
    bf16 *keys, *values;      /* [slots, G, C]: the layer's cache */
    const float *turns;       /* [T, C/2, 2]: cos and sin */
    const float *temperature; /* [T], or NULL */
    bf16 *hidden;             /* [T, D]: the residual stream, to which attention is added */
    Input normed;             /* [T, D]: normalised, at first for attention, in the end for what follows */
    bf16 *qkv;                /* [T, (H + 2G)C] */
    Input mixed;              /* [T, HC] */
    int64_t *chosen;          /* [T, K]: the experts of each token, and */
    bf16 *scores;             /* [T, K]: how much of it they get */
} Step;

INLINE void norm_token(const Step *s, long t, const bf16 *weight)
{
    const long width = s->layer->width;
    rms_norm(s->hidden + t * width, weight, width, s->layer->eps, (bf16 *)s->normed.rows + t * width);
}

static void norm_before_chunk(const void *job, long t)
{
    const Step *s = job;
    norm_token(s, t, s->layer->attn_norm);
    if (s->normed.codes) quantize_chunk(&s->normed, t);
}

/* The experts with the greatest logits, equal ones by their number; a NaN is the greatest. Source: router/gate.py. */
static void choose_experts(const Step *s, long t)
{
    const Layer *l = s->layer;
    const char *token = (const char *)(s->normed.rows + t * l->width);
    float logits[MOST_EXPERTS];
    for (long e = 0; e < l->num_experts; e += ROWS)
        dot_bfloat16((const char *)(l->gate + e * l->width), token, 1, l->width * sizeof(bf16), logits + e, ROWS);
    for (long e = 0; e < l->num_experts; e++) logits[e] = widen(narrow(logits[e]));
    for (long k = 0; k < l->num_chosen; k++) {
        long best = 0;
        for (long e = 1; e < l->num_experts && logits[best] == logits[best]; e++)
            if (!(logits[e] <= logits[best])) best = e;
        s->chosen[t * l->num_chosen + k] = best;
        s->scores[t * l->num_chosen + k] = narrow(1 / (1 + expf(-logits[best])));
        logits[best] = -INFINITY;
    }
}

static void norm_after_chunk(const void *job, long t)
{
    const Step *s = job;
    norm_token(s, t, s->layer->ffn_norm);
    if (s->layer->gate) choose_experts(s, t);
}

INLINE long qkv_width(const Layer *l) { return (l->num_heads + 2 * l->num_groups) * l->head_size; }

static void qkv_chunk(const void *job, long chunk)
{
    const Step *s = job;
    multiply_rows(s->layer->qkv, chunk, tokens_from(&s->normed, 0), s->seen->num_tokens, s->qkv, 0);
}

static void o_chunk(const void *job, long chunk)
{
    const Step *s = job;
    multiply_rows(s->layer->o, chunk, tokens_from(&s->mixed, 0), s->seen->num_tokens, s->hidden, 1);
}

INLINE void rotate(bf16 *head, const float *turns, long size, const int interleaved)
{
    const long step = interleaved ? 2 : 1, other = interleaved ? 1 : size / 2;
    for (long i = 0; i < size / 2; i++) {
        const float a = widen(head[i * step]), b = widen(head[i * step + other]);
        const float cosine = turns[2 * i], sine = turns[2 * i + 1];
        head[i * step] = narrow(a * cosine - b * sine);
        head[i * step + other] = narrow(a * sine + b * cosine);
    }
}

/* Rotate, normalise, scale, in Llama 4's order, and store the token's keys and values. */
static void place_chunk(const void *job, long t)
{
    const Step *s = job;
    const Layer *l = s->layer;
    const long size = l->head_size, num_turning = l->num_heads + l->num_groups;
    bf16 *heads = s->qkv + t * qkv_width(l);
    for (long h = 0; h < num_turning && l->rotates; h++) {
        const float *turns = s->turns + t * size;
        if (l->interleaved) rotate(heads + h * size, turns, size, 1);
        else rotate(heads + h * size, turns, size, 0);
        if (l->norms_qk) rms_norm(heads + h * size, NULL, size, l->eps, heads + h * size);
    }
    if (s->temperature && !l->rotates)
        for (long i = 0; i < l->num_heads * size; i++) heads[i] = narrow(widen(heads[i]) * s->temperature[t]);
    const long row = l->num_groups * size;
    memcpy(s->keys + s->seen->slots[t] * row, heads + l->num_heads * size, row * sizeof(bf16));
    memcpy(s->values + s->seen->slots[t] * row, heads + num_turning * size, row * sizeof(bf16));
}

typedef struct {
    long count; /* rows: (token, head of the group) */
    bf16 q[QUERIES][MOST_HEAD];
    long num_seen[QUERIES];
    float scores[QUERIES][TILE], most[QUERIES], sum[QUERIES];
    bf16 weights[QUERIES][TILE];
    float out[QUERIES][MOST_HEAD];
} Queries;

/* Keys or values of one group in consecutive slots. What is read beyond the last is the last again: nobody knows what
 * is in the memory behind it. */
typedef struct {
    const bf16 *first;
    long stride, count, size;
} Heads;

INLINE const bf16 *head_at(Heads heads, long i)
{
    return heads.first + (i < heads.count ? i : heads.count - 1) * heads.stride;
}

/* Few queries: one key after the other. */

static void score_tile(Queries *q, Heads keys)
{
    for (long key = 0; key < keys.count; key += ROWS) {
        const char *rows[ROWS];
        for (int r = 0; r < ROWS; r++) rows[r] = (const char *)head_at(keys, key + r);
        dot_rows(BFLOAT16, rows, (const char *)q->q[0], sizeof q->q[0], q->count, keys.size * sizeof(bf16), NULL,
                 &q->scores[0][key], TILE);
    }
}

INLINE void add_values_block(const int N, Queries *q, long first, Heads values, long c)
{
    floats sums[BLOCK][4];
#pragma GCC unroll 6
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) sums[n][i] = *(floats *)(q->out[first + n] + c + 16 * i);
    for (long k = 0; k < values.count; k++) {
        floats value[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) value[i] = widen16(values.first + k * values.stride + c + 16 * i);
#pragma GCC unroll 6
        for (int n = 0; n < N; n++)
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) sums[n][i] += q->scores[first + n][k] * value[i];
    }
#pragma GCC unroll 6
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) *(floats *)(q->out[first + n] + c + 16 * i) = sums[n][i];
}

static void add_values(Queries *q, Heads values)
{
    for (long c = 0; c < values.size; c += 64)
        for (long first = 0; first < q->count; first += BLOCK)
            switch (q->count - first) {
#define CASE(N) case N: add_values_block(N, q, first, values, c); break;
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5)
#undef CASE
            default: add_values_block(BLOCK, q, first, values, c);
            }
}

/* Many queries: the tile is put in the order in which pairs of its numbers are multiplied with a pair of a query's, so
 * that no sums across a vector are left. Three times as fast for 48 rows. */

typedef pairs Packed[TILE / 16]; /* what one pair of numbers is multiplied with */

#define KEEP(l, s) ((l) & (s) ? (l) - (s) + 16 : (l))
#define PASS(l, s) ((l) & (s) ? (l) + 16 : (l) + (s))
#define LANES(f, s)                                                                                                   \
    f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s), f(8, s), f(9, s), f(10, s), f(11, s),      \
        f(12, s), f(13, s), f(14, s), f(15, s)
#define SWAP(s)                                                                                                       \
    for (int i = 0; i < 16; i++)                                                                                      \
        if (!(i & s)) {                                                                                               \
            const pairs a = rows[i], b = rows[i + s];                                                                 \
            rows[i] = __builtin_shufflevector(a, b, LANES(KEEP, s));                                                  \
            rows[i + s] = __builtin_shufflevector(a, b, LANES(PASS, s));                                              \
        }

INLINE void transpose16(pairs rows[16])
{
#pragma GCC unroll 16
    SWAP(1)
#pragma GCC unroll 16
    SWAP(2)
#pragma GCC unroll 16
    SWAP(4)
#pragma GCC unroll 16
    SWAP(8)
}

static void pack_keys(Packed *packed, Heads keys)
{
    for (long group = 0; group < TILE / 16; group++)
        for (long c = 0; c < keys.size; c += 32) {
            pairs rows[16];
            for (int i = 0; i < 16; i++) rows[i] = *(const pairs *)(head_at(keys, group * 16 + i) + c);
            transpose16(rows);
            for (int i = 0; i < 16; i++) packed[c / 2 + i][group] = rows[i];
        }
}

/* Each pair is of two keys' values: of 64 numbers of a head. */
static void pack_values(Packed *packed, Heads values, long c)
{
    for (long k = 0; k < values.count; k += 2) {
        const bf16 *even = head_at(values, k) + c, *odd = head_at(values, k + 1) + c;
        for (int i = 0; i < 4; i++)
            packed[k / 2][i] = spread16(even + 16 * i) | spread16(odd + 16 * i) << 16;
    }
}

/* out[n] += the pairs of row n, each times what it is to be multiplied with; 64 numbers. */
INLINE void add_pairs(const int N, const bf16 *rows, long stride, const Packed *packed, long count, float *out,
                      long width, const int starts_at_zero)
{
    typedef uint32_t pair __attribute__((may_alias, aligned(2)));
    floats sums[BLOCK][4] = {};
#pragma GCC unroll 6
    for (int n = 0; n < N && !starts_at_zero; n++)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) sums[n][i] = *(floats *)(out + n * width + 16 * i);
    for (long p = 0; p < count; p++)
#pragma GCC unroll 6
        for (int n = 0; n < N; n++) {
            const pairs both = (pairs){} + *(const pair *)(rows + n * stride + 2 * p);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) sums[n][i] = multiply_add(BFLOAT16, sums[n][i], both, packed[p][i]);
        }
#pragma GCC unroll 6
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) *(floats *)(out + n * width + 16 * i) = sums[n][i];
}

/* The same for any number of rows. */
INLINE void add_all_pairs(const bf16 *rows, long stride, long num_rows, const Packed *packed, long count, float *out,
                          long width, const int starts_at_zero)
{
    for (long first = 0; first < num_rows; first += BLOCK) {
        const bf16 *block = rows + first * stride;
        float *sums = out + first * width;
        switch (num_rows - first) {
#define CASE(N) case N: add_pairs(N, block, stride, packed, count, sums, width, starts_at_zero); break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5)
#undef CASE
        default: add_pairs(BLOCK, block, stride, packed, count, sums, width, starts_at_zero);
        }
    }
}

static void score_tile_packed(Queries *q, Heads keys)
{
    Packed packed[MOST_HEAD / 2];
    pack_keys(packed, keys);
    add_all_pairs(q->q[0], MOST_HEAD, q->count, packed, keys.size / 2, q->scores[0], TILE, 1);
}

static void add_values_packed(Queries *q, Heads values)
{
    Packed packed[TILE / 2];
    for (long c = 0; c < values.size; c += 64) {
        pack_values(packed, values, c);
        add_all_pairs(q->weights[0], TILE, q->count, packed, (values.count + 1) / 2, q->out[0] + c, MOST_HEAD, 0);
    }
}

/* Scale what a row added up before to its new greatest score; return that. */
INLINE float raise_top(Queries *q, long i, float top, long size)
{
    const float most = q->most[i];
    if (top <= most) return most; /* so it is for nearly every tile but the first */
    const float shrink = expf(most - top);
    q->sum[i] *= shrink;
    for (long c = 0; c < size; c += 16) *(floats *)(q->out[i] + c) *= shrink;
    return q->most[i] = top;
}

/* Turn a tile's scores into weights. Keys that a row does not see weigh nothing. */
static void soften_tile(Queries *q, long first_key, long num_keys, long size)
{
    const floats places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const float scale = 1.0f / sqrtf(size);
    for (long i = 0; i < q->count; i++) {
        float *scores = q->scores[i];
        const long left = q->num_seen[i] - first_key, num_visible = left < num_keys ? left : num_keys;
        floats tops = (floats){} - INFINITY, sums = {};
        for (long k = 0; k < num_keys; k += 16) {
            const float num_left = num_visible - k;
            const floats hidden = (floats){} - INFINITY;
            const floats score = choose(places < num_left, *(floats *)(scores + k) * scale, hidden);
            *(floats *)(scores + k) = score;
            tops = (floats)_mm512_max_ps((__m512)tops, (__m512)score);
        }
        const float most = raise_top(q, i, _mm512_reduce_max_ps((__m512)tops), size);
        for (long k = 0; k < num_keys; k += 16) {
            const floats weights = exp16(*(floats *)(scores + k) - most);
            *(floats *)(scores + k) = weights;
            narrow16(q->weights[i] + k, weights);
            sums += weights;
        }
        q->sum[i] += total(sums);
    }
}

/* The same for a whole tile that every row sees, into weights of bfloat16 only. */
static void soften_whole_tile(Queries *q, long size)
{
    const float scale = 1.0f / sqrtf(size);
    for (long i = 0; i < q->count; i++) {
        floats scores[TILE / 16], tops = (floats){} - INFINITY, sums = {};
#pragma GCC unroll 4
        for (int k = 0; k < TILE / 16; k++) {
            scores[k] = *(floats *)(q->scores[i] + 16 * k) * scale;
            tops = (floats)_mm512_max_ps((__m512)tops, (__m512)scores[k]);
        }
        const float most = raise_top(q, i, _mm512_reduce_max_ps((__m512)tops), size);
#pragma GCC unroll 4
        for (int k = 0; k < TILE / 16; k++) {
            const floats weights = rough_exp16(scores[k] - most);
            narrow16(q->weights[i] + 16 * k, weights);
            sums += weights;
        }
        q->sum[i] += total(sums);
    }
}

static void read_tile(Queries *q, long first_key, Heads keys, Heads values)
{
    const int is_worth_packing = q->count >= WORTH_PACKING;
    if (is_worth_packing) score_tile_packed(q, keys);
    else score_tile(q, keys);
    /* The first row sees least. */
    if (is_worth_packing && keys.count == TILE && q->num_seen[0] >= first_key + TILE) soften_whole_tile(q, keys.size);
    else soften_tile(q, first_key, keys.count, keys.size);
    if (is_worth_packing) add_values_packed(q, values);
    else add_values(q, values);
}

/* One group's queries of a reader over its keys, tile by tile. Source: Milakov and Gimelshein 2018 (online softmax). */
static void attend_reader(const Step *s, const Reader *reader, long group, long start, long count)
{
    const Layer *l = s->layer;
    const long size = l->head_size, per_group = l->num_heads / l->num_groups, stride = l->num_groups * size;
    Queries q;
    q.count = count;
    for (long i = 0; i < count; i++) {
        const long token = reader->token + (start + i) / per_group, head = group * per_group + (start + i) % per_group;
        memcpy(q.q[i], s->qkv + token * qkv_width(l) + head * size, size * sizeof(bf16));
        memset(q.out[i], 0, size * sizeof(float));
        q.num_seen[i] = reader->num_seen + (start + i) / per_group;
        q.most[i] = -INFINITY, q.sum[i] = 0;
    }
    const long num_seen = reader->num_seen + (start + count - 1) / per_group; /* of the last of them */
    long position = 0;
    for (long run = 0; run < reader->num_runs; run++) {
        const int64_t *pages = s->seen->runs[reader->first_run + run];
        for (long key = 0; key < pages[1] && position < num_seen; key += TILE) {
            const long in_run = pages[1] - key < TILE ? pages[1] - key : TILE;
            const long num_keys = num_seen - position < in_run ? num_seen - position : in_run;
            const long offset = (pages[0] + key) * stride + group * size;
            const Heads keys = {s->keys + offset, stride, num_keys, size}, values = {s->values + offset, stride, num_keys, size};
            read_tile(&q, position, keys, values);
            position += num_keys;
        }
    }
    for (long i = 0; i < count; i++) {
        const long token = reader->token + (start + i) / per_group, head = group * per_group + (start + i) % per_group;
        bf16 *out = (bf16 *)s->mixed.rows + (token * l->num_heads + head) * size;
        for (long c = 0; c < size; c += 16) narrow16(out + c, *(floats *)(q.out[i] + c) / q.sum[i]);
    }
}

INLINE long num_parts(const Step *s, const Reader *reader)
{
    return (reader->num_tokens * (s->layer->num_heads / s->layer->num_groups) + QUERIES - 1) / QUERIES;
}

/* A chunk is up to QUERIES rows of one group of one reader. */
static void attend_chunk(const void *job, long chunk)
{
    const Step *s = job;
    const long groups = s->layer->num_groups, per_group = s->layer->num_heads / groups;
    for (long i = 0; i < s->seen->num_readers; i++) {
        const Reader *reader = s->seen->readers + i;
        const long parts = num_parts(s, reader);
        if (chunk < parts * groups) {
            const long start = chunk / groups * QUERIES, left = reader->num_tokens * per_group - start;
            attend_reader(s, reader, chunk % groups, start, left < QUERIES ? left : QUERIES);
            return;
        }
        chunk -= parts * groups;
    }
}

void herd_attention(const Step *s, long num_threads)
{
    long num_attends = 0;
    for (long i = 0; i < s->seen->num_readers; i++) num_attends += num_parts(s, s->seen->readers + i);
    const long num_tokens = s->seen->num_tokens;
    const Phase phases[] = {
        {norm_before_chunk, s, num_tokens},
        {qkv_chunk, s, num_chunks(qkv_width(s->layer))},
        {place_chunk, s, num_tokens},
        {attend_chunk, s, num_attends * s->layer->num_groups},
        quantize_phase(&s->mixed, num_tokens),
        {o_chunk, s, num_chunks(s->layer->width)},
        {norm_after_chunk, s, num_tokens},
    };
    run(phases, sizeof phases / sizeof *phases, num_threads);
}
