// lg: a load generator for OpenAI-compatible gateways on this machine. One thread, epoll; only loopback addresses.
//
//   lg --url http://127.0.0.1:9201/v1/chat/completions --body request.json [--key KEY] --connections 64 --duration 4
//      [--stream --expect 200] [--ramp-ms 4000] [--timeout 20]
//
// Closed loop: each connection sends its next request when the last answer is complete, for ``duration`` seconds; the
// first ones are spread over ``ramp-ms``. Requests under way at the end are waited for, at most ``timeout`` seconds.
//
// Every event of a stream is read. A token of mock_engine holds its index and the time when it was sent: a token that
// is lost, doubled or out of order, and a stream without [DONE], count as errors, and "delay" is how long tokens were
// under way. A kept connection that the server closed between two requests is opened again, once, as clients do.
// Prints one JSON object.
#define _GNU_SOURCE
#include <arpa/inet.h>
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
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 8192, LINE_BYTES = 64 * 1024, SHOWN_BYTES = 300 };

typedef enum { CLOSED, CONNECTING, SENDING, WAITING, KEPT } phase;
typedef enum { SIZE_LINE, CHUNK, CHUNK_END, TRAILERS } chunk_phase;

typedef struct {
    int fd, was_used;
    phase phase;
    size_t sent_bytes;
    uint64_t starts_us, asked_us, last_token_us;
    // the answer
    char head[HEAD_BYTES], line[LINE_BYTES], size_line[32];
    size_t head_bytes, line_bytes, size_bytes;
    int has_head, status, is_chunked, closes, has_done, has_fault;
    chunk_phase chunk;
    long length, left, tokens; // length -1: until the connection closes
} connection;

typedef struct {
    uint32_t *us;
    size_t count, size;
} times;

static struct {
    const char *url, *key, *body_path;
    int connections, is_stream, ramp_ms;
    long expect; // tokens of a whole stream; -1: any number
    double duration_s, timeout_s;
} options = {.key = "", .connections = 1, .expect = -1, .duration_s = 5, .timeout_s = 20};

static struct {
    long started, ok, http_errors, socket_errors, bad_streams, timeouts, reconnects, tokens;
    int open, most_open, statuses[600];
    times latency, first_token, delay, gap;
    char sample[SHOWN_BYTES + 1];
} found;

static connection *connections;
static struct sockaddr_in address = {.sin_family = AF_INET};
static char *request;
static size_t request_bytes;
static int epoll_fd;
static uint64_t started_us, ends_us;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + t.tv_nsec / 1000;
}

static void note(times *t, int64_t us) {
    if (t->count == t->size) {
        t->size = t->size ? t->size * 2 : 65536;
        t->us = realloc(t->us, t->size * sizeof *t->us);
    }
    t->us[t->count++] = us < 0 ? 0 : us > UINT32_MAX ? UINT32_MAX : us;
}

static void note_sample(const char *text, size_t bytes) {
    if (!*found.sample)
        snprintf(found.sample, sizeof found.sample, "%.*s", (int)bytes, text);
}

// ---- connections

static void watch(connection *c, uint32_t events, int how) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, how, c->fd, &e);
}

static void dial(connection *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
    c->phase = CONNECTING;
    c->was_used = 0;
    c->sent_bytes = 0;
    if (connect(c->fd, (void *)&address, sizeof address) < 0 && errno != EINPROGRESS) {
        perror("connect");
        exit(1);
    }
}

static void hang_up(connection *c) {
    close(c->fd);
    c->fd = -1;
    c->phase = CLOSED;
}

static void send_more(connection *c) {
    while (c->sent_bytes < request_bytes) {
        ssize_t n = send(c->fd, request + c->sent_bytes, request_bytes - c->sent_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) { // a broken connection is seen when it is read
            watch(c, EPOLLIN | (errno == EAGAIN ? EPOLLOUT : 0), EPOLL_CTL_MOD);
            return;
        }
        c->sent_bytes += n;
    }
    c->phase = WAITING;
    watch(c, EPOLLIN, EPOLL_CTL_MOD);
}

static void begin(connection *c, uint64_t at_us) {
    found.started++;
    if (++found.open > found.most_open)
        found.most_open = found.open;
    c->asked_us = at_us;
    c->head_bytes = c->line_bytes = c->size_bytes = c->sent_bytes = 0;
    c->has_head = c->status = c->is_chunked = c->closes = c->has_done = c->has_fault = 0;
    c->chunk = SIZE_LINE;
    c->length = -1;
    c->left = c->tokens = 0;
    if (c->phase == CLOSED) {
        dial(c);
    } else {
        c->phase = SENDING;
        send_more(c);
    }
}

static void go_on(connection *c) {
    uint64_t t = now_us();
    if (t < ends_us) {
        begin(c, t);
    } else if (c->phase != CLOSED) {
        c->phase = KEPT;
    }
}

static int is_bad(const connection *c) {
    return options.is_stream && (c->has_fault || !c->has_done || (options.expect >= 0 && c->tokens != options.expect));
}

static void finish(connection *c) {
    found.open--;
    if (c->status >= 0 && c->status < 600)
        found.statuses[c->status]++;
    if (c->status != 200) {
        found.http_errors++;
        note_sample(c->line, c->line_bytes);
    } else if (is_bad(c)) {
        found.bad_streams++;
        note_sample("a stream with faults, or not whole", SHOWN_BYTES);
    } else {
        found.ok++;
        note(&found.latency, now_us() - c->asked_us);
    }
    c->was_used = 1;
    if (c->closes)
        hang_up(c);
    go_on(c);
}

static void fail(connection *c) {
    phase before = c->phase;
    int is_stale = c->was_used && !c->head_bytes && before != CONNECTING;
    hang_up(c);
    if (before == KEPT)
        return;
    if (is_stale) {
        found.reconnects++;
        dial(c);
        return;
    }
    found.open--;
    found.socket_errors++;
    go_on(c);
}

// ---- answers

static void read_token(connection *c, const char *text, uint64_t at_us) { // " IIIII-TTTTTTTTTTTTTTTT"
    long index = strtol(text + 1, NULL, 10);
    uint64_t sent_us = strtoull(text + 7, NULL, 10);
    if (index != c->tokens)
        c->has_fault = 1;
    if (c->tokens++)
        note(&found.gap, at_us - c->last_token_us);
    else
        note(&found.first_token, at_us - c->asked_us);
    note(&found.delay, at_us - sent_us);
    c->last_token_us = at_us;
    found.tokens++;
}

// The text of a token after the JSON name ``name``, or NULL.
static const char *token_after(const char *json, const char *end, const char *name) {
    const char *at = memmem(json, end - json, name, strlen(name));
    if (!at)
        return NULL;
    for (at += strlen(name); at < end && (*at == ' ' || *at == ':'); at++)
        ;
    return end - at > 24 && at[0] == '"' && at[1] == ' ' && at[7] == '-' ? at + 1 : NULL;
}

static void read_line(connection *c, const char *line, size_t bytes, uint64_t at_us) {
    if (bytes < 12 || memcmp(line, "data:", 5))
        return;
    const char *end = line + bytes, *json = line + 5 + (line[5] == ' ');
    if (!memcmp(json, "[DONE]", 6)) {
        c->has_done = 1;
        return;
    }
    const char *text = token_after(json, end, "\"content\"");
    if (!text)
        text = token_after(json, end, "\"text\"");
    if (text) {
        read_token(c, text, at_us);
    } else if (memmem(json, end - json, "\"error\"", 7)) {
        c->has_fault = 1;
        note_sample(json, end - json);
    }
}

static void keep(connection *c, const char *data, size_t bytes) {
    if (c->line_bytes + bytes > LINE_BYTES) {
        c->has_fault = 1;
        return;
    }
    memcpy(c->line + c->line_bytes, data, bytes);
    c->line_bytes += bytes;
}

static void read_body(connection *c, const char *data, size_t bytes, uint64_t at_us) {
    if (c->status != 200)
        keep(c, data, bytes);
    if (c->status != 200 || !options.is_stream)
        return;
    for (const char *newline; bytes && (newline = memchr(data, '\n', bytes)); data = newline + 1) {
        size_t n = newline - data;
        bytes -= n + 1;
        if (!c->line_bytes) {
            read_line(c, data, n, at_us);
            continue;
        }
        keep(c, data, n);
        read_line(c, c->line, c->line_bytes, at_us);
        c->line_bytes = 0;
    }
    keep(c, data, bytes);
}

// Takes the head out of ``data``; the bytes that it used, and ``has_head`` when it is whole.
static size_t read_head(connection *c, const char *data, size_t bytes) {
    size_t room = HEAD_BYTES - 1 - c->head_bytes, before = c->head_bytes, n = bytes < room ? bytes : room;
    memcpy(c->head + before, data, n);
    c->head[c->head_bytes += n] = 0;
    char *end = strstr(c->head, "\r\n\r\n"), *field;
    if (!end)
        return n;
    *end = 0;
    c->has_head = 1;
    c->status = atoi(c->head + 9);
    if ((field = strcasestr(c->head, "\r\ncontent-length:")))
        c->left = c->length = strtol(field + 17, NULL, 10);
    c->is_chunked = strcasestr(c->head, "\r\ntransfer-encoding:") != NULL;
    c->closes = strcasestr(c->head, "\r\nconnection: close") || (!c->is_chunked && c->length < 0);
    return end + 4 - c->head - before;
}

static size_t read_size_line(connection *c, const char *data, size_t bytes) {
    const char *newline = memchr(data, '\n', bytes);
    size_t n = newline ? (size_t)(newline + 1 - data) : bytes;
    if (c->size_bytes + n >= sizeof c->size_line) {
        c->has_fault = 1;
        return bytes;
    }
    memcpy(c->size_line + c->size_bytes, data, n);
    c->size_line[c->size_bytes += n] = 0;
    if (newline) {
        c->left = strtol(c->size_line, NULL, 16);
        c->chunk = c->left ? CHUNK : TRAILERS;
        c->size_bytes = 0;
    }
    return n;
}

static size_t read_left(connection *c, const char *data, size_t bytes, uint64_t at_us, int is_body) {
    size_t n = (size_t)c->left < bytes ? (size_t)c->left : bytes;
    if (is_body)
        read_body(c, data, n, at_us);
    c->left -= n;
    return n;
}

// One piece of a chunked body; sets ``is_whole`` at its end.
static size_t read_chunked(connection *c, const char *data, size_t bytes, uint64_t at_us, int *is_whole) {
    size_t n;
    switch (c->chunk) {
    case SIZE_LINE:
        return read_size_line(c, data, bytes);
    case CHUNK:
        n = read_left(c, data, bytes, at_us, 1);
        if (!c->left) {
            c->chunk = CHUNK_END;
            c->left = 2;
        }
        return n;
    case CHUNK_END:
        n = read_left(c, data, bytes, at_us, 0);
        if (!c->left)
            c->chunk = SIZE_LINE;
        return n;
    default: // an empty line ends the trailers
        *is_whole = *data == '\n' && !c->size_bytes;
        c->size_bytes = *data == '\n' ? 0 : c->size_bytes + (*data != '\r');
        return 1;
    }
}

// Takes in what came; whether the answer is complete.
static int feed(connection *c, const char *data, size_t bytes, uint64_t at_us) {
    int is_whole = 0;
    while (bytes && !is_whole) {
        size_t n;
        if (!c->has_head)
            n = read_head(c, data, bytes);
        else if (c->is_chunked)
            n = read_chunked(c, data, bytes, at_us, &is_whole);
        else if (c->length >= 0)
            n = read_left(c, data, bytes, at_us, 1);
        else
            read_body(c, data, n = bytes, at_us);
        data += n;
        bytes -= n;
        if (c->has_head && !c->is_chunked && c->length >= 0 && !c->left)
            is_whole = 1;
    }
    return is_whole;
}

static void on_readable(connection *c) {
    static char data[1 << 18];
    ssize_t n = recv(c->fd, data, sizeof data, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0 && c->phase != KEPT) {
        if (feed(c, data, n, now_us()))
            finish(c);
    } else if (n == 0 && c->phase == WAITING && c->has_head && !c->is_chunked && c->length < 0) {
        finish(c);
    } else if (n <= 0) {
        fail(c);
    }
}

static void on_event(connection *c, uint32_t events) {
    if (c->fd < 0)
        return;
    if (c->phase == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            fail(c);
            return;
        }
        c->phase = SENDING;
    }
    if (c->phase == SENDING && events & EPOLLOUT)
        send_more(c);
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        on_readable(c);
}

static void run(void) {
    int begun = 0;
    struct epoll_event events[1024];
    uint64_t gives_up_us = ends_us + options.timeout_s * 1e6;
    for (;;) {
        uint64_t t = now_us();
        for (; begun < options.connections && connections[begun].starts_us <= t; begun++)
            if (t < ends_us)
                begin(&connections[begun], t);
        if (begun == options.connections && !found.open)
            return;
        if (t > gives_up_us) {
            found.timeouts = found.open;
            return;
        }
        int n = epoll_wait(epoll_fd, events, 1024, begun < options.connections ? 1 : 200);
        for (int i = 0; i < n; i++)
            on_event(events[i].data.ptr, events[i].events);
    }
}

// ---- what was found

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static uint32_t share_of(const times *t, double share) {
    return t->us[(size_t)((t->count - 1) * share)];
}

static void print_times(const char *name, times *t) {
    if (!t->count) {
        printf(",\"%s\":null", name);
        return;
    }
    qsort(t->us, t->count, sizeof *t->us, by_size);
    printf(",\"%s\":{\"count\":%zu,\"p50\":%u,\"p95\":%u,\"p99\":%u,\"max\":%u}", name, t->count, share_of(t, .5),
           share_of(t, .95), share_of(t, .99), t->us[t->count - 1]);
}

static void print_found(double seconds) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    double cpu_s = use.ru_utime.tv_sec + use.ru_stime.tv_sec + (use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6;
    printf("{\"seconds\":%.3f,\"started\":%ld,\"ok\":%ld,\"http_errors\":%ld,\"socket_errors\":%ld,"
           "\"bad_streams\":%ld,\"timeouts\":%ld,\"reconnects\":%ld,\"most_open\":%d,\"tokens\":%ld,\"cpu_s\":%.3f",
           seconds, found.started, found.ok, found.http_errors, found.socket_errors, found.bad_streams, found.timeouts,
           found.reconnects, found.most_open, found.tokens, cpu_s);
    print_times("latency_us", &found.latency);
    print_times("first_token_us", &found.first_token);
    print_times("delay_us", &found.delay);
    print_times("gap_us", &found.gap);
    const char *comma = "";
    printf(",\"statuses\":{");
    for (int i = 0; i < 600; i++)
        if (found.statuses[i]) {
            printf("%s\"%d\":%d", comma, i, found.statuses[i]);
            comma = ",";
        }
    printf("},\"sample\":\"");
    for (char *p = found.sample; *p; p++)
        if ((unsigned char)*p >= 32)
            printf(*p == '"' || *p == '\\' ? "\\%c" : "%c", *p);
    printf("\"}\n");
}

// ---- the start

static int read_options(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(name, "--stream")) {
            options.is_stream = 1;
            continue;
        }
        i++;
        if (!strcmp(name, "--url"))
            options.url = value;
        else if (!strcmp(name, "--key"))
            options.key = value;
        else if (!strcmp(name, "--body"))
            options.body_path = value;
        else if (!strcmp(name, "--connections"))
            options.connections = atoi(value);
        else if (!strcmp(name, "--duration"))
            options.duration_s = atof(value);
        else if (!strcmp(name, "--expect"))
            options.expect = atol(value);
        else if (!strcmp(name, "--ramp-ms"))
            options.ramp_ms = atoi(value);
        else if (!strcmp(name, "--timeout"))
            options.timeout_s = atof(value);
        else
            return 0;
    }
    return options.url && options.body_path;
}

static char *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file)
        return NULL;
    fseek(file, 0, SEEK_END);
    *bytes = ftell(file);
    rewind(file);
    char *data = malloc(*bytes + 1);
    int is_whole = fread(data, 1, *bytes, file) == *bytes;
    fclose(file);
    return is_whole ? data : NULL;
}

static int make_request(void) {
    char host[64], path[256];
    int port = 80;
    size_t body_bytes;
    if (sscanf(options.url, "http://%63[0-9.]:%d%255s", host, &port, path) != 3)
        return 0;
    address.sin_port = htons(port);
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1 || ntohl(address.sin_addr.s_addr) >> 24 != 127)
        return 0;
    char *body = read_file(options.body_path, &body_bytes), key[4600] = "";
    if (!body)
        return 0;
    if (*options.key)
        snprintf(key, sizeof key, "authorization: Bearer %s\r\n", options.key);
    request = malloc(body_bytes + HEAD_BYTES);
    request_bytes = snprintf(request, HEAD_BYTES,
                             "POST %s HTTP/1.1\r\nhost: %s:%d\r\n%scontent-type: application/json\r\naccept: */*\r\n"
                             "content-length: %zu\r\n\r\n",
                             path, host, port, key, body_bytes);
    memcpy(request + request_bytes, body, body_bytes);
    request_bytes += body_bytes;
    free(body);
    return 1;
}

int main(int argc, char **argv) {
    if (!read_options(argc, argv) || !make_request()) {
        fprintf(stderr, "lg: needs --url http://127.0.0.1:PORT/PATH and --body FILE; see its source for the rest\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll_fd = epoll_create1(0);
    connections = calloc(options.connections, sizeof *connections);
    started_us = now_us();
    ends_us = started_us + options.duration_s * 1e6;
    for (int i = 0; i < options.connections; i++) {
        connections[i].fd = -1;
        connections[i].starts_us = started_us + (uint64_t)(options.ramp_ms * 1000.0 * i / options.connections);
    }
    run();
    print_found((now_us() - started_us) / 1e6);
    return 0;
}
