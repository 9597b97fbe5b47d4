/*
 * Guest agent of the demo guest: the part of the QEMU guest agent's protocol that Understudy uses, so that
 * the host side works with qemu-ga in any other guest as well (QEMU documentation, "QEMU Guest Agent
 * Protocol Reference"). One JSON object per line in, one per line out.
 *
 *   agent PORT   serves a virtio-serial port, e.g. /dev/vport1p1
 *   agent -      serves stdin and stdout until stdin ends
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

#define LINE_BYTES_MAX 4096
#define DEPTH_MAX 16
#define NAME_BYTES_SHOWN_MAX 64
#define HOST_WAIT_SECONDS 1
#define NS_PER_SECOND INT64_C(1000000000)
#define SENTINEL 0xff

/* ---- JSON: a scanner over a text that ends in NUL. No rule accepts NUL, so none runs past the end. ---- */

struct scanner {
    const char *at;
};

struct span {
    const char *start;
    size_t length;
};

static void skip_space(struct scanner *scanner) {
    scanner->at += strspn(scanner->at, " \t\r\n");
}

static bool accept(struct scanner *scanner, char wanted) {
    skip_space(scanner);
    if (*scanner->at != wanted)
        return false;
    scanner->at++;
    return true;
}

static bool span_is(struct span span, const char *text) {
    return span.length == strlen(text) && memcmp(span.start, text, span.length) == 0;
}

/* Escapes are checked but stay as they are: no name that matters needs one. */
static bool scan_string(struct scanner *scanner, struct span *content) {
    if (!accept(scanner, '"'))
        return false;
    content->start = scanner->at;
    while (*scanner->at != '"') {
        if ((unsigned char)*scanner->at < ' ')
            return false;
        if (*scanner->at == '\\') {
            scanner->at++;
            if (*scanner->at == 'u') {
                for (int digit = 0; digit < 4; digit++)
                    if (!isxdigit((unsigned char)*++scanner->at))
                        return false;
            } else if (*scanner->at == '\0' || strchr("\"\\/bfnrt", *scanner->at) == NULL) {
                return false;
            }
        }
        scanner->at++;
    }
    content->length = (size_t)(scanner->at - content->start);
    scanner->at++;
    return true;
}

static bool skip_digits(struct scanner *scanner) {
    size_t digits = strspn(scanner->at, "0123456789");
    scanner->at += digits;
    return digits > 0;
}

/* Leaves *integer alone and clears *is_integer if the number has a fraction or does not fit. */
static bool scan_number(struct scanner *scanner, int64_t *integer, bool *is_integer) {
    skip_space(scanner);
    const char *start = scanner->at;
    if (*scanner->at == '-')
        scanner->at++;
    if (!skip_digits(scanner))
        return false;
    *is_integer = true;
    if (*scanner->at == '.') {
        *is_integer = false;
        scanner->at++;
        if (!skip_digits(scanner))
            return false;
    }
    if (*scanner->at == 'e' || *scanner->at == 'E') {
        *is_integer = false;
        scanner->at++;
        if (*scanner->at == '+' || *scanner->at == '-')
            scanner->at++;
        if (!skip_digits(scanner))
            return false;
    }
    if (*is_integer) {
        errno = 0;
        int64_t value = strtoll(start, NULL, 10);
        if (errno == 0)
            *integer = value;
        else
            *is_integer = false;
    }
    return true;
}

static bool skip_word(struct scanner *scanner, const char *word) {
    if (strncmp(scanner->at, word, strlen(word)) != 0)
        return false;
    scanner->at += strlen(word);
    return true;
}

static bool skip_value(struct scanner *scanner, int depth) {
    struct span name;
    int64_t integer;
    bool is_integer;

    skip_space(scanner);
    switch (*scanner->at) {
    case '"':
        return scan_string(scanner, &name);
    case 't':
        return skip_word(scanner, "true");
    case 'f':
        return skip_word(scanner, "false");
    case 'n':
        return skip_word(scanner, "null");
    case '{':
    case '[':
        break;
    default:
        return scan_number(scanner, &integer, &is_integer);
    }
    bool object = *scanner->at++ == '{';
    char end = object ? '}' : ']';
    if (depth == DEPTH_MAX)
        return false;
    if (accept(scanner, end))
        return true;
    do {
        if (object && !(scan_string(scanner, &name) && accept(scanner, ':')))
            return false;
        if (!skip_value(scanner, depth + 1))
            return false;
    } while (accept(scanner, ','));
    return accept(scanner, end);
}

/* ---- Requests ---- */

struct request {
    struct span command;
    bool has_command;
    /* The one integer argument that any command here takes: `id` or `time`. */
    int64_t argument;
    bool has_argument;
};

static bool scan_arguments(struct scanner *scanner, struct request *request) {
    struct span name;

    if (!accept(scanner, '{'))
        return false;
    if (accept(scanner, '}'))
        return true;
    do {
        if (!scan_string(scanner, &name) || !accept(scanner, ':'))
            return false;
        skip_space(scanner);
        bool number = *scanner->at == '-' || isdigit((unsigned char)*scanner->at);
        if (number && (span_is(name, "id") || span_is(name, "time"))) {
            if (!scan_number(scanner, &request->argument, &request->has_argument))
                return false;
        } else if (!skip_value(scanner, 2)) {
            return false;
        }
    } while (accept(scanner, ','));
    return accept(scanner, '}');
}

static bool parse_request(const char *line, struct request *request) {
    struct scanner scanner = {line};
    struct span name;

    memset(request, 0, sizeof *request);
    if (!accept(&scanner, '{'))
        return false;
    if (!accept(&scanner, '}')) {
        do {
            bool valid;
            if (!scan_string(&scanner, &name) || !accept(&scanner, ':'))
                return false;
            if (span_is(name, "execute"))
                valid = request->has_command = scan_string(&scanner, &request->command);
            else if (span_is(name, "arguments"))
                valid = scan_arguments(&scanner, request);
            else
                valid = skip_value(&scanner, 1);
            if (!valid)
                return false;
        } while (accept(&scanner, ','));
        if (!accept(&scanner, '}'))
            return false;
    }
    skip_space(&scanner);
    return *scanner.at == '\0';
}

/* ---- Answers. One write each, so that an answer is one piece on the wire. ---- */

static int output;
/* Commands come through a port, so from this guest's own host: not from whoever runs the program by hand. */
static bool from_host;

static void answer(const char *text) {
    size_t length = strlen(text);
    while (length > 0) {
        ssize_t written = write(output, text, length);
        if (written < 0) {
            if (errno == EINTR || errno == EAGAIN)
                continue;
            exit(1);
        }
        text += written;
        length -= (size_t)written;
    }
}

static void answer_integer(const char *prefix, int64_t value) {
    char text[64];
    snprintf(text, sizeof text, "%s{\"return\": %" PRId64 "}\n", prefix, value);
    answer(text);
}

static void answer_error(const char *class, const char *description) {
    char text[256];
    snprintf(text, sizeof text, "{\"error\": {\"class\": \"%s\", \"desc\": \"%s\"}}\n", class, description);
    answer(text);
}

static void answer_unknown(struct span command) {
    char description[NAME_BYTES_SHOWN_MAX + 64];
    bool shown = command.length <= NAME_BYTES_SHOWN_MAX;
    for (size_t i = 0; i < command.length; i++)
        shown = shown && isascii((unsigned char)command.start[i]);
    snprintf(description, sizeof description, "The command %.*s has not been found",
             shown ? (int)command.length : 3, shown ? command.start : "...");
    answer_error("CommandNotFound", description);
}

/* ---- Commands ---- */

static void ping(const struct request *request) {
    (void)request;
    answer("{\"return\": {}}\n");
}

static void sync_plain(const struct request *request) {
    answer_integer("", request->argument);
}

/* The byte 0xFF, never part of JSON, tells the client where stale answers end. */
static void sync_delimited(const struct request *request) {
    answer_integer("\xff", request->argument);
}

static void get_time(const struct request *request) {
    struct timespec now;
    (void)request;
    clock_gettime(CLOCK_REALTIME, &now);
    answer_integer("", now.tv_sec * NS_PER_SECOND + now.tv_nsec);
}

/* Unlike qemu-ga it starts no hwclock: the real-time clock is the host's own. */
static void set_time(const struct request *request) {
    struct timespec wanted = {request->argument / NS_PER_SECOND, request->argument % NS_PER_SECOND};
    if (request->argument < 0 || clock_settime(CLOCK_REALTIME, &wanted) != 0)
        answer_error("GenericError", "The time cannot be set");
    else
        answer("{\"return\": {}}\n");
}

/* As qemu-ga does it, success has no answer: the guest is off. What is written has to reach the disks first. */
static void power_off(const struct request *request) {
    (void)request;
    if (from_host) {
        sync();
        reboot(RB_POWER_OFF);
    }
    answer_error("GenericError", "The guest cannot be powered off");
}

static void info(const struct request *request);

static const struct {
    const char *name;
    bool needs_argument;
    void (*run)(const struct request *request);
} commands[] = {
    {"guest-sync-delimited", true, sync_delimited},
    {"guest-sync", true, sync_plain},
    {"guest-ping", false, ping},
    {"guest-info", false, info},
    {"guest-get-time", false, get_time},
    {"guest-set-time", true, set_time},
    {"guest-shutdown", false, power_off},
};
#define COMMANDS (sizeof commands / sizeof commands[0])

static void info(const struct request *request) {
    char text[1024] = "{\"return\": {\"version\": \"7.2.0-understudy\", \"supported_commands\": [";
    (void)request;
    for (size_t i = 0; i < COMMANDS; i++) {
        size_t length = strlen(text);
        snprintf(text + length, sizeof text - length,
                 "%s{\"name\": \"%s\", \"enabled\": true, \"success-response\": true}", i > 0 ? ", " : "",
                 commands[i].name);
    }
    size_t length = strlen(text);
    snprintf(text + length, sizeof text - length, "]}}\n");
    answer(text);
}

static void handle(const char *line) {
    struct request request;

    if (!parse_request(line, &request)) {
        answer_error("GenericError", "Invalid JSON syntax");
        return;
    }
    if (!request.has_command) {
        answer_error("GenericError", "QMP input lacks member 'execute'");
        return;
    }
    for (size_t i = 0; i < COMMANDS; i++) {
        if (!span_is(request.command, commands[i].name))
            continue;
        if (commands[i].needs_argument && !request.has_argument)
            answer_error("GenericError", "An integer argument is missing");
        else
            commands[i].run(&request);
        return;
    }
    answer_unknown(request.command);
}

/* ---- Lines ---- */

struct line {
    char text[LINE_BYTES_MAX + 1];
    size_t length;
    bool too_long;
};

static void reset(struct line *line) {
    line->length = 0;
    line->too_long = false;
}

static void feed(struct line *line, unsigned char byte) {
    if (byte == SENTINEL) {
        reset(line);
    } else if (byte == '\n') {
        line->text[line->length] = '\0';
        if (line->too_long)
            answer_error("GenericError", "The request is too long");
        else if (memchr(line->text, '\0', line->length) != NULL)
            answer_error("GenericError", "Invalid JSON syntax");
        else if (line->text[strspn(line->text, " \t\r")] != '\0')
            handle(line->text);
        reset(line);
    } else if (line->length == LINE_BYTES_MAX) {
        line->too_long = true;
    } else {
        line->text[line->length++] = (char)byte;
    }
}

/*
 * While no host is connected, a port reads as at its end. The kernel raises SIGIO when that changes; the
 * signal is blocked, so one that comes before the wait is not lost.
 */
static void wait_for_host(const sigset_t *signals) {
    struct timespec timeout = {HOST_WAIT_SECONDS, 0};
    sigtimedwait(signals, NULL, &timeout);
}

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "usage: agent PORT | agent -\n");
        return 2;
    }
    bool port = strcmp(arguments[1], "-") != 0;
    int input = port ? open(arguments[1], O_RDWR | O_CLOEXEC) : STDIN_FILENO;
    if (input < 0) {
        perror(arguments[1]);
        return 1;
    }
    output = port ? input : STDOUT_FILENO;
    from_host = port;

    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGIO);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    if (port && (fcntl(input, F_SETOWN, getpid()) != 0 || fcntl(input, F_SETFL, O_ASYNC) != 0))
        perror("fcntl");

    static struct line line;
    unsigned char chunk[1024];
    for (;;) {
        ssize_t got = read(input, chunk, sizeof chunk);
        if (got > 0) {
            for (ssize_t i = 0; i < got; i++)
                feed(&line, chunk[i]);
        } else if (got == 0 && port) {
            reset(&line);
            wait_for_host(&signals);
        } else if (got == 0) {
            return 0;
        } else if (errno != EINTR && errno != EAGAIN) {
            perror("read");
            return 1;
        }
    }
}
