// mock_engine: a stand-in for an inference server in the shapes of vLLM's answers, fast enough not to be what limits a
// gateway. One thread, epoll. Listens on 127.0.0.1 and asks for no key.
//
//   mock_engine --port 9101 [--model mock-model]
//
//   POST /v1/chat/completions, /v1/completions, /v1/embeddings
//   GET  /health, /v1/models, /stats (counters as JSON)
//
// A request chooses its timing by the text of its prompt, since every gateway keeps that:
//   "MOCK n=200 gap_us=20000 first_us=5000 status=503 drop_after=10"
// n: tokens (else max_tokens, else 16), gap_us: time between tokens, first_us: time to the first one, status: answer
// with this error, drop_after: close the connection after so many tokens.
//
// The text of every streamed token is " IIIII-TTTTTTTTTTTTTTTT": its index, and CLOCK_MONOTONIC in microseconds when it
// was sent, so that a client on this machine can tell how long each token was under way.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MOST_TOKENS = 99999, MOST_PLAIN_TOKENS = 4096, MOST_HEAD_BYTES = 65536, MOST_BEHIND_US = 1000000 };

typedef enum { IDLE, DELAYED, STREAMING } phase;

typedef struct connection {
    int fd, heap_index; // heap_index -1: no timer runs
    phase phase;
    int is_chat, wants_usage, is_blocked, closes_when_sent, closes_after_answer;
    char *in;
    size_t in_bytes, in_size, in_needed;
    char *out;
    size_t out_bytes, out_sent, out_size;
    long tokens, sent_tokens, gap_us, drop_after; // drop_after -1: never
    uint64_t due_us;
    struct connection *next_dead;
} connection;

static const char *model = "mock-model";
static int epoll_fd, timer_fd, listener;
static connection *dead; // freed at the end of the turn: events of the same turn may still name them
static volatile sig_atomic_t is_stopping;
static struct {
    long requests, streams, running, tokens, aborted, connections;
} stats;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + t.tv_nsec / 1000;
}

// ---- a heap of connections by when something is due

static connection **heap;
static int heap_count, heap_size;

static void heap_set(int i, connection *c) {
    heap[i] = c;
    c->heap_index = i;
}

static void heap_rise(int i) {
    connection *c = heap[i];
    for (int parent; i > 0 && heap[parent = (i - 1) / 2]->due_us > c->due_us; i = parent)
        heap_set(i, heap[parent]);
    heap_set(i, c);
}

static void heap_sink(int i) {
    connection *c = heap[i];
    for (int child; (child = 2 * i + 1) < heap_count; i = child) {
        if (child + 1 < heap_count && heap[child + 1]->due_us < heap[child]->due_us)
            child++;
        if (heap[child]->due_us >= c->due_us)
            break;
        heap_set(i, heap[child]);
    }
    heap_set(i, c);
}

static void schedule(connection *c, uint64_t due_us) {
    if (heap_count == heap_size) {
        heap_size = heap_size ? heap_size * 2 : 1024;
        heap = realloc(heap, heap_size * sizeof *heap);
    }
    c->due_us = due_us;
    heap_set(heap_count++, c);
    heap_rise(c->heap_index);
}

static void unschedule(connection *c) {
    int i = c->heap_index;
    if (i < 0)
        return;
    c->heap_index = -1;
    connection *last = heap[--heap_count];
    if (last == c)
        return;
    heap_set(i, last);
    heap_rise(i);
    heap_sink(last->heap_index);
}

static void arm_timer(void) {
    static uint64_t armed_us;
    uint64_t due_us = heap_count ? heap[0]->due_us : 0;
    if (due_us == armed_us && due_us > now_us())
        return;
    armed_us = due_us;
    struct itimerspec at = {.it_value = {due_us / 1000000, due_us % 1000000 * 1000}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

// ---- bytes out

static void watch(connection *c, int is_blocked) {
    if (c->is_blocked == is_blocked)
        return;
    c->is_blocked = is_blocked;
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | (is_blocked ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
}

static void hang_up(connection *c) {
    if (c->fd < 0)
        return;
    if (c->phase != IDLE) {
        stats.running--;
        stats.aborted++;
    }
    stats.connections--;
    unschedule(c);
    close(c->fd);
    c->fd = -1;
    c->phase = IDLE;
    c->next_dead = dead;
    dead = c;
}

static void put(connection *c, const char *data, size_t bytes) {
    if (c->out_bytes + bytes > c->out_size) {
        while (c->out_bytes + bytes > c->out_size)
            c->out_size = c->out_size ? c->out_size * 2 : 4096;
        c->out = realloc(c->out, c->out_size);
    }
    memcpy(c->out + c->out_bytes, data, bytes);
    c->out_bytes += bytes;
}

// Send what waits; whether all of it went and the connection lives on.
static int flush(connection *c) {
    while (c->out_sent < c->out_bytes) {
        ssize_t sent = send(c->fd, c->out + c->out_sent, c->out_bytes - c->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0) {
            c->out_sent += sent;
        } else if (errno == EAGAIN) {
            watch(c, 1);
            return 0;
        } else if (errno != EINTR) {
            hang_up(c);
            return 0;
        }
    }
    c->out_bytes = c->out_sent = 0;
    watch(c, 0);
    if (c->closes_when_sent)
        hang_up(c);
    return c->fd >= 0;
}

// ---- answers

static void answer(connection *c, const char *status, const char *body, size_t bytes) {
    char head[256];
    int n = snprintf(head, sizeof head,
                     "HTTP/1.1 %s\r\nserver: mock\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n",
                     status, bytes);
    put(c, head, n);
    put(c, body, bytes);
}

static void answer_text(connection *c, const char *status, const char *body) {
    answer(c, status, body, strlen(body));
}

static int plain_body(char *body, size_t size, const char *text, int is_chat, long tokens) {
    const char *shape =
        is_chat
            ? "{\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"chat.completion\","
              "\"created\":1700000000,\"model\":\"%s\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
              "\"content\":\"%s\",\"refusal\":null,\"tool_calls\":[]},\"logprobs\":null,\"finish_reason\":\"length\","
              "\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":10,\"total_tokens\":%ld,"
              "\"completion_tokens\":%ld,\"prompt_tokens_details\":null},\"prompt_logprobs\":null}"
            : "{\"id\":\"cmpl-0123456789abcdef0123456789abcdef\",\"object\":\"text_completion\","
              "\"created\":1700000000,\"model\":\"%s\",\"choices\":[{\"index\":0,\"text\":\"%s\",\"logprobs\":null,"
              "\"finish_reason\":\"length\",\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":10,"
              "\"total_tokens\":%ld,\"completion_tokens\":%ld}}";
    return snprintf(body, size, shape, model, text, tokens + 10, tokens);
}

// Plain answers of one length are alike: each is made once.
static void answer_plain(connection *c) {
    static char *made[2][MOST_PLAIN_TOKENS + 1];
    long n = c->tokens > MOST_PLAIN_TOKENS ? MOST_PLAIN_TOKENS : c->tokens;
    if (!made[c->is_chat][n]) {
        size_t size = n * 6 + 2048, used = 0;
        char *text = malloc(size), *body = malloc(size);
        for (long i = 0; i < n; i++)
            used += sprintf(text + used, " t%04ld", i % 10000);
        text[used] = 0;
        plain_body(body, size, text, c->is_chat, n);
        free(text);
        made[c->is_chat][n] = body;
    }
    answer_text(c, "200 OK", made[c->is_chat][n]);
    stats.tokens += n;
}

static void answer_embedding(connection *c) {
    char body[2048];
    int n = snprintf(body, sizeof body,
                     "{\"id\":\"embd-0123456789abcdef\",\"object\":\"list\",\"created\":1700000000,\"model\":\"%s\","
                     "\"data\":[{\"index\":0,\"object\":\"embedding\",\"embedding\":[0.5",
                     model);
    for (int i = 0; i < 64; i++)
        n += sprintf(body + n, ",0.%04d", i * 37 % 10000);
    n += sprintf(body + n, "]}],\"usage\":{\"prompt_tokens\":10,\"total_tokens\":10,\"completion_tokens\":0}}");
    answer(c, "200 OK", body, n);
}

static void put_event(connection *c, const char *json, size_t bytes) { // one event is one HTTP chunk
    char head[32];
    put(c, head, sprintf(head, "%zx\r\ndata: ", bytes + 8));
    put(c, json, bytes);
    put(c, "\n\n\r\n", 4);
}

// ``choice`` is what stands between the brackets of "choices"; ``more`` follows them.
static void put_chunk(connection *c, const char *choice, const char *more) {
    char json[1024];
    int n = snprintf(json, sizeof json,
                     "{\"id\":\"%scmpl-0123456789abcdef0123456789abcdef\",\"object\":\"%s\",\"created\":1700000000,"
                     "\"model\":\"%s\",\"choices\":[%s]%s}",
                     c->is_chat ? "chat" : "", c->is_chat ? "chat.completion.chunk" : "text_completion", model, choice,
                     more);
    put_event(c, json, n);
}

static void write_digits(char *to, int width, uint64_t value) {
    while (width--) {
        to[width] = '0' + value % 10;
        value /= 10;
    }
}

// The event of a token is made once, with holes for index and time.
static void put_token(connection *c, uint64_t at_us) {
    static char made[2][1024];
    static size_t bytes[2], hole[2];
    char *event = made[c->is_chat];
    if (!bytes[c->is_chat]) {
        static const char token[] = " 00000-0000000000000000";
        connection scratch = {.is_chat = c->is_chat};
        char choice[256];
        snprintf(choice, sizeof choice,
                 c->is_chat
                     ? "{\"index\":0,\"delta\":{\"content\":\"%s\"},\"logprobs\":null,\"finish_reason\":null}"
                     : "{\"index\":0,\"text\":\"%s\",\"logprobs\":null,\"finish_reason\":null,\"stop_reason\":null}",
                 token);
        put_chunk(&scratch, choice, "");
        memcpy(event, scratch.out, scratch.out_bytes);
        hole[c->is_chat] = (char *)memmem(event, scratch.out_bytes, token, sizeof token - 1) - event;
        bytes[c->is_chat] = scratch.out_bytes;
        free(scratch.out);
    }
    write_digits(event + hole[c->is_chat] + 1, 5, c->sent_tokens);
    write_digits(event + hole[c->is_chat] + 7, 16, at_us);
    put(c, event, bytes[c->is_chat]);
    c->sent_tokens++;
    stats.tokens++;
}

static void begin_stream(connection *c) {
    static const char head[] = "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                               "transfer-encoding: chunked\r\n\r\n";
    put(c, head, sizeof head - 1);
    if (c->is_chat)
        put_chunk(c, "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}", "");
}

static void end_stream(connection *c) {
    put_chunk(c,
              c->is_chat ? "{\"index\":0,\"delta\":{\"content\":\"\"},\"logprobs\":null,\"finish_reason\":\"length\"}"
                         : "{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"length\"}",
              "");
    if (c->wants_usage) {
        char usage[128];
        snprintf(usage, sizeof usage,
                 ",\"usage\":{\"prompt_tokens\":10,\"total_tokens\":%ld,\"completion_tokens\":%ld}", c->tokens + 10,
                 c->tokens);
        put_chunk(c, "", usage);
    }
    put_event(c, "[DONE]", 6);
    put(c, "0\r\n\r\n", 5);
}

static void handle_all(connection *c);

static void finish(connection *c) {
    c->phase = IDLE;
    c->closes_when_sent = c->closes_after_answer;
    stats.running--;
    if (flush(c))
        handle_all(c);
}

// Plan the next token; one that is far behind, since nobody read, does not make up for all of it.
static void go_on(connection *c) {
    uint64_t t = now_us(), due_us = c->due_us + c->gap_us;
    schedule(c, c->gap_us == 0 ? t + 1 : due_us + MOST_BEHIND_US < t ? t : due_us);
}

static void step(connection *c, uint64_t at_us) {
    if (c->phase == DELAYED) {
        answer_plain(c);
        finish(c);
        return;
    }
    if (c->sent_tokens == 0)
        begin_stream(c);
    put_token(c, at_us);
    if (c->drop_after >= 0 && c->sent_tokens >= c->drop_after) {
        c->closes_when_sent = 1;
        flush(c);
    } else if (c->sent_tokens >= c->tokens) {
        end_stream(c);
        finish(c);
    } else if (flush(c)) {
        go_on(c);
    }
}

// ---- requests

static long number_after(const char *text, size_t bytes, const char *name, long otherwise) {
    const char *end = text + bytes, *at = memmem(text, bytes, name, strlen(name));
    if (!at)
        return otherwise;
    for (at += strlen(name); at < end && (isspace((unsigned char)*at) || *at == ':'); at++)
        ;
    if (end - at >= 4 && !memcmp(at, "true", 4))
        return 1;
    return at < end && isdigit((unsigned char)*at) ? strtol(at, NULL, 10) : otherwise;
}

static int is_path(const char *path, size_t bytes, const char *name) {
    return bytes == strlen(name) && !memcmp(path, name, bytes);
}

static void handle_get(connection *c, const char *path, size_t path_bytes) {
    char body[512];
    if (is_path(path, path_bytes, "/health")) {
        answer_text(c, "200 OK", "");
    } else if (is_path(path, path_bytes, "/v1/models")) {
        snprintf(body, sizeof body,
                 "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"created\":1700000000,"
                 "\"owned_by\":\"mock\",\"max_model_len\":131072}]}",
                 model);
        answer_text(c, "200 OK", body);
    } else if (is_path(path, path_bytes, "/stats")) {
        snprintf(
            body, sizeof body,
            "{\"requests\":%ld,\"streams\":%ld,\"running\":%ld,\"tokens\":%ld,\"aborted\":%ld,\"connections\":%ld}",
            stats.requests, stats.streams, stats.running, stats.tokens, stats.aborted, stats.connections);
        answer_text(c, "200 OK", body);
    } else {
        answer_text(c, "404 Not Found", "{\"detail\":\"Not Found\"}");
    }
}

// What the prompt asks for; whether it asks for an error, which was answered then.
static int read_wishes(connection *c, const char *body, size_t bytes, long *first_us) {
    long tokens =
        number_after(body, bytes, "\"max_tokens\"", number_after(body, bytes, "\"max_completion_tokens\"", 16));
    const char *mark = memmem(body, bytes, "MOCK ", 5);
    size_t left = mark ? (size_t)(body + bytes - mark) : 0;
    const char *quote = left ? memchr(mark, '"', left) : NULL;
    if (quote)
        left = quote - mark;
    if (left > 120)
        left = 120;
    c->gap_us = number_after(mark, left, " gap_us=", 0);
    c->drop_after = number_after(mark, left, " drop_after=", -1);
    *first_us = number_after(mark, left, " first_us=", 0);
    c->tokens = number_after(mark, left, " n=", tokens);
    c->tokens = c->tokens < 1 ? 1 : c->tokens > MOST_TOKENS ? MOST_TOKENS : c->tokens;
    long status = number_after(mark, left, " status=", 0);
    if (status) {
        char line[64];
        snprintf(line, sizeof line, "%ld Mocked", status);
        answer_text(c, line, "{\"error\":{\"message\":\"mocked\",\"type\":\"mock\",\"param\":null,\"code\":null}}");
    }
    return status != 0;
}

static void handle_post(connection *c, const char *path, size_t path_bytes, const char *body, size_t bytes) {
    c->is_chat = is_path(path, path_bytes, "/v1/chat/completions");
    if (!c->is_chat && !is_path(path, path_bytes, "/v1/completions")) {
        if (is_path(path, path_bytes, "/v1/embeddings"))
            answer_embedding(c);
        else
            answer_text(c, "404 Not Found", "{\"detail\":\"Not Found\"}");
        return;
    }
    char ends[16384]; // what matters stands near the ends: a large prompt is not searched
    if (bytes > sizeof ends) {
        memcpy(ends, body, sizeof ends / 2);
        memcpy(ends + sizeof ends / 2, body + bytes - sizeof ends / 2, sizeof ends / 2);
        body = ends;
        bytes = sizeof ends;
    }
    long first_us;
    if (read_wishes(c, body, bytes, &first_us))
        return;
    int is_stream = number_after(body, bytes, "\"stream\"", 0) == 1;
    long wait_us = is_stream ? first_us : first_us + c->gap_us * (c->tokens - 1);
    if (!is_stream && !wait_us) {
        answer_plain(c);
        return;
    }
    stats.running++;
    c->sent_tokens = 0;
    c->wants_usage = number_after(body, bytes, "\"include_usage\"", 0) == 1;
    c->phase = is_stream ? STREAMING : DELAYED;
    stats.streams += is_stream;
    schedule(c, now_us() + wait_us);
}

typedef struct {
    long length;
    int is_chunked, closes, expects;
} framing;

static framing read_head(const char *head, const char *end) {
    framing f = {0};
    const char *version = memmem(head, end - head, " HTTP/1.0\r\n", 11);
    f.closes = version != NULL;
    for (const char *line = head; (line = memmem(line, end - line, "\r\n", 2)) && line < end;) {
        line += 2;
        if (!strncasecmp(line, "content-length:", 15))
            f.length = strtol(line + 15, NULL, 10);
        else if (!strncasecmp(line, "transfer-encoding: chunked", 26))
            f.is_chunked = 1;
        else if (!strncasecmp(line, "connection: close", 17))
            f.closes = 1;
        else if (!strncasecmp(line, "expect:", 7))
            f.expects = 1;
    }
    return f;
}

// Joins the chunks of a body in place; the bytes that it took on the wire, 0 while it is not complete.
static size_t unchunk(char *body, size_t bytes, long *length) {
    size_t at = 0, joined = 0;
    for (int pass = 0; pass < 2; pass++) { // first whether all is there, then in earnest
        at = joined = 0;
        for (size_t size = 1; size;) {
            char *line_end = memmem(body + at, bytes - at, "\r\n", 2);
            if (!line_end)
                return 0;
            size = strtoul(body + at, NULL, 16);
            size_t start = line_end + 2 - body;
            if (start + size + 2 > bytes)
                return 0;
            if (pass)
                memmove(body + joined, body + start, size);
            joined += size;
            at = start + size + 2;
        }
    }
    *length = joined;
    return at;
}

// Answers one request, if one is there; the bytes that it took, 0 when there is none.
static size_t handle_one(connection *c) {
    char *end = memmem(c->in, c->in_bytes, "\r\n\r\n", 4);
    if (!end) {
        if (c->in_bytes > MOST_HEAD_BYTES)
            hang_up(c);
        return 0;
    }
    framing f = read_head(c->in, end);
    char *body = end + 4;
    size_t head_bytes = body - c->in, body_bytes = f.length;
    if (f.expects && c->in_bytes == head_bytes)
        put(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    if (f.is_chunked && !(body_bytes = unchunk(body, c->in_bytes - head_bytes, &f.length)))
        c->in_needed = c->in_bytes + 1;
    else
        c->in_needed = head_bytes + body_bytes;
    if (c->in_bytes < c->in_needed) {
        if (c->out_bytes)
            flush(c);
        return 0;
    }
    char *path = memchr(c->in, ' ', head_bytes), *path_end = path ? memchr(path + 1, ' ', end - path) : NULL;
    if (!path_end) {
        hang_up(c);
        return 0;
    }
    stats.requests++;
    c->closes_after_answer = f.closes;
    if (*c->in == 'P')
        handle_post(c, path + 1, path_end - path - 1, body, f.length);
    else
        handle_get(c, path + 1, path_end - path - 1);
    if (c->phase == IDLE)
        c->closes_when_sent = f.closes;
    return head_bytes + body_bytes;
}

static void handle_all(connection *c) {
    while (c->fd >= 0 && c->phase == IDLE && !c->closes_when_sent && c->in_bytes && c->in_bytes >= c->in_needed) {
        size_t used = handle_one(c);
        if (!used)
            return;
        c->in_needed = 0;
        c->in_bytes -= used;
        memmove(c->in, c->in + used, c->in_bytes);
        if (c->phase == STREAMING && c->due_us <= now_us()) { // a first token does not queue behind others
            unschedule(c);
            step(c, now_us());
        }
        if (c->phase == IDLE && !flush(c))
            return;
    }
}

static void on_readable(connection *c) {
    for (;;) {
        size_t room = c->in_needed > c->in_bytes + 16384 ? c->in_needed - c->in_bytes : 16384;
        if (c->in_size - c->in_bytes < room) {
            c->in_size = c->in_bytes + room;
            c->in = realloc(c->in, c->in_size);
        }
        room = c->in_size - c->in_bytes;
        ssize_t got = recv(c->fd, c->in + c->in_bytes, room, MSG_DONTWAIT);
        if (got <= 0) {
            if (got == 0 || (errno != EAGAIN && errno != EINTR))
                hang_up(c);
            return;
        }
        c->in_bytes += got;
        handle_all(c);
        if (c->fd < 0 || (size_t)got < room)
            return;
    }
}

static void on_writable(connection *c) {
    if (!flush(c))
        return;
    if (c->phase == STREAMING && c->heap_index < 0)
        go_on(c);
    else
        handle_all(c);
}

static void accept_all(void) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->heap_index = -1;
        stats.connections++;
        struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
    }
}

static void on_event(uint32_t events, void *whose) {
    if (whose == &timer_fd) {
        uint64_t times;
        if (read(timer_fd, &times, sizeof times) < 0)
            return;
    } else if (whose == &listener) {
        accept_all();
    } else {
        connection *c = whose;
        if (c->fd >= 0 && events & (EPOLLERR | EPOLLHUP))
            hang_up(c);
        if (c->fd >= 0 && events & EPOLLOUT)
            on_writable(c);
        if (c->fd >= 0 && events & (EPOLLIN | EPOLLRDHUP))
            on_readable(c);
    }
}

static void bury(void) {
    while (dead) {
        connection *c = dead;
        dead = c->next_dead;
        free(c->in);
        free(c->out);
        free(c);
    }
}

static void serve(void) {
    struct epoll_event events[512];
    while (!is_stopping) {
        arm_timer();
        int n = epoll_wait(epoll_fd, events, 512, 1000);
        for (int i = 0; i < n; i++)
            on_event(events[i].events, events[i].data.ptr);
        uint64_t t = now_us();
        while (heap_count && heap[0]->due_us <= t) {
            connection *c = heap[0];
            unschedule(c);
            step(c, now_us());
        }
        bury();
    }
}

static int listen_on(int port) {
    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    return !bind(listener, (void *)&address, sizeof address) && !listen(listener, 4096);
}

static void watch_for_ever(int fd, void *whose) {
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = whose};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
}

static void stop(int number) {
    (void)number;
    is_stopping = 1;
}

int main(int argc, char **argv) {
    int port = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--port"))
            port = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--model"))
            model = argv[i + 1];
    }
    if (!port) {
        fprintf(stderr, "usage: %s --port PORT [--model NAME]\n", argv[0]);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll_fd = epoll_create1(0);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    if (!listen_on(port)) {
        perror("listen");
        return 1;
    }
    watch_for_ever(timer_fd, &timer_fd);
    watch_for_ever(listener, &listener);
    serve();
    return 0;
}
