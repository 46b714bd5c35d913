/*
 * A process that makes the system calls it is told to make.
 *
 * Tests need the exact errno of calls that neither std nor nix offers, from processes with other
 * credentials, in other namespaces and from chosen threads; here they are made without a libc
 * between. Orders come as lines on descriptor 0 (a socket), each gets one line in answer:
 *
 *   call NR ARG...   iN = integer, xHEX = bytes (a NUL follows), oN = room for N bytes, z = NULL
 *                    -> "R RESULT [xHEX per o argument]" or "E ERRNO"
 *   fork             -> "R PID" (as the caller sees it); the child takes orders through `to`
 *   thread           -> "R TID"; likewise
 *   to ID ORDER      hands an order to a child or thread of this agent and its answer back
 *   give ID FD       passes a descriptor by SCM_RIGHTS -> "R FD" in the receiver
 *   park N           N more threads that only wait -> "R N"
 *   spin             a thread that keeps a CPU busy -> "R TID"
 *   leave            ends this thread only (the leader too) -> "R 0"
 *   quit             ends the process -> "R 0"
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

struct line {
	char *text;
	size_t len, cap;
	int fd; /* a descriptor that came with the line, or -1 */
};

struct peer {
	long id;
	int sock;
	struct peer *next;
};

static __thread struct peer *peers;
static __thread int is_thread;

/* Reads a whole order, and the descriptor that may have come with it. */
static int get_line(int sock, struct line *l)
{

	l->len = 0;
	l->fd = -1;
	for (;;) {
		char control[CMSG_SPACE(sizeof(int))];
		char *room;
		struct iovec iov;
		struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1,
				      .msg_control = control, .msg_controllen = sizeof(control) };
		struct cmsghdr *c;
		ssize_t n;

		if (l->cap - l->len < 65536) {
			l->cap = l->cap * 2 + 131072;
			l->text = realloc(l->text, l->cap);
			if (!l->text)
				return 0;
		}
		room = l->text + l->len;
		iov.iov_base = room;
		iov.iov_len = l->cap - l->len - 1;
		n = recvmsg(sock, &msg, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return 0;
		c = CMSG_FIRSTHDR(&msg);
		if (c && c->cmsg_type == SCM_RIGHTS)
			memcpy(&l->fd, CMSG_DATA(c), sizeof(int));
		l->len += n;
		/* Strictly one order, then one answer: nothing can follow the newline. */
		if (l->text[l->len - 1] == '\n') {
			l->text[--l->len] = 0;
			return 1;
		}
	}
}

static void put(int sock, const char *text, size_t len)
{
	while (len) {
		ssize_t n = send(sock, text, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		text += n;
		len -= n;
	}
}

static void put_number(int sock, char kind, long value)
{
	char text[32];

	put(sock, text, snprintf(text, sizeof(text), "%c %ld\n", kind, value));
}

static int digit(char c)
{
	return c <= '9' ? c - '0' : c - 'a' + 10;
}

static void call(int sock, char *args)
{
	static const char hex[] = "0123456789abcdef";
	long value[7] = { 0 }, result;
	char *block[7] = { 0 };
	size_t room[7] = { 0 }, size = 64;
	char *answer, *p;
	int n = 0;

	for (p = strtok(args, " "); p && n < 7; p = strtok(0, " "), n++) {
		if (*p == 'x') {
			size_t len = strlen(p + 1) / 2, i;

			block[n] = malloc(len + 1);
			for (i = 0; i < len; i++)
				block[n][i] = digit(p[1 + 2 * i]) << 4 | digit(p[2 + 2 * i]);
			block[n][len] = 0;
			value[n] = (long)block[n];
		} else if (*p == 'o') {
			room[n] = strtoul(p + 1, 0, 10);
			block[n] = calloc(1, room[n] + 1);
			value[n] = (long)block[n];
		} else {
			value[n] = *p == 'z' ? 0 : strtol(p + 1, 0, 10);
		}
	}
	result = syscall(value[0], value[1], value[2], value[3], value[4], value[5], value[6]);
	if (result == -1) {
		put_number(sock, 'E', errno);
	} else {
		for (n = 0; n < 7; n++)
			size += 2 * room[n] + 2;
		answer = malloc(size);
		p = answer + sprintf(answer, "R %ld", result);
		for (n = 0; n < 7; n++) {
			size_t i, len = room[n];

			if (!len)
				continue;
			if (result > 0 && (size_t)result < len)
				len = result;
			*p++ = ' ';
			*p++ = 'x';
			for (i = 0; i < len; i++) {
				*p++ = hex[(unsigned char)block[n][i] >> 4];
				*p++ = hex[block[n][i] & 15];
			}
		}
		*p++ = '\n';
		put(sock, answer, p - answer);
		free(answer);
	}
	for (n = 0; n < 7; n++)
		free(block[n]);
}

static void serve(int sock);

struct birth {
	int sock;
	_Atomic long tid;
};

static void *thread_agent(void *arg)
{
	struct birth *birth = arg;
	int sock = birth->sock;

	is_thread = 1;
	birth->tid = syscall(SYS_gettid);
	serve(sock);
	return 0;
}

static void *spinner(void *arg)
{
	struct birth *birth = arg;
	volatile unsigned long n = 0;

	birth->tid = syscall(SYS_gettid);
	for (;;)
		n++;
	return 0;
}

static void *parked(void *arg)
{
	(void)arg;
	for (;;)
		pause();
	return 0;
}

static int new_thread(void *(*body)(void *), void *arg)
{
	pthread_attr_t attr;
	pthread_t thread;
	int err;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, body == parked ? 32768 : 262144);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	err = pthread_create(&thread, &attr, body, arg);
	pthread_attr_destroy(&attr);
	return err;
}

/* Returns the new thread's id, or -errno. */
static long birth_of(void *(*body)(void *), int sock)
{
	struct birth *birth = malloc(sizeof(*birth));
	int err;

	birth->sock = sock;
	birth->tid = 0;
	err = new_thread(body, birth);
	if (err)
		return -err;
	while (!birth->tid)
		sched_yield();
	return birth->tid;
}

static void remember(long id, int sock)
{
	struct peer *p = malloc(sizeof(*p));

	p->id = id;
	p->sock = sock;
	p->next = peers;
	peers = p;
}

static int sock_of(long id)
{
	struct peer *p;

	for (p = peers; p; p = p->next)
		if (p->id == id)
			return p->sock;
	return -1;
}

static void agent(int sock, int as_thread)
{
	int pair[2];
	long id;

	socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);
	if (as_thread) {
		id = birth_of(thread_agent, pair[1]);
	} else {
		id = fork();
		if (id == 0) {
			close(pair[0]);
			close(sock);
			peers = 0;
			is_thread = 0;
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			serve(pair[1]);
			_exit(0);
		}
		id = id < 0 ? -errno : id;
		close(pair[1]);
	}
	if (id < 0) {
		put_number(sock, 'E', -id);
		return;
	}
	remember(id, pair[0]);
	put_number(sock, 'R', id);
}

static void relay(int sock, int to, struct line *answer)
{
	if (get_line(to, answer)) {
		answer->text[answer->len++] = '\n';
		put(sock, answer->text, answer->len);
	} else {
		put_number(sock, 'E', EPIPE);
	}
}

static void give(int to, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { "take\n", 5 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1,
			      .msg_control = control, .msg_controllen = sizeof(control) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(int));
	sendmsg(to, &msg, MSG_NOSIGNAL);
}

static void serve(int sock)
{
	struct line order = { 0 }, answer = { 0 };

	while (get_line(sock, &order)) {
		char *text = order.text, *rest;
		long id, result;

		if (!strncmp(text, "call ", 5)) {
			call(sock, text + 5);
		} else if (!strncmp(text, "to ", 3)) {
			id = strtol(text + 3, &rest, 10);
			text[order.len] = '\n';
			put(sock_of(id), rest + 1, text + order.len - rest);
			relay(sock, sock_of(id), &answer);
		} else if (!strncmp(text, "give ", 5)) {
			id = strtol(text + 5, &rest, 10);
			give(sock_of(id), atoi(rest));
			relay(sock, sock_of(id), &answer);
		} else if (!strcmp(text, "take")) {
			put_number(sock, 'R', order.fd);
		} else if (!strcmp(text, "fork")) {
			agent(sock, 0);
		} else if (!strcmp(text, "thread")) {
			agent(sock, 1);
		} else if (!strcmp(text, "spin")) {
			result = birth_of(spinner, -1);
			put_number(sock, result < 0 ? 'E' : 'R', labs(result));
		} else if (!strncmp(text, "park ", 5)) {
			long n = atol(text + 5);
			int err = 0;

			for (id = 0; id < n && !err; id++)
				err = new_thread(parked, 0);
			put_number(sock, err ? 'E' : 'R', err ? err : n);
		} else if (!strcmp(text, "leave")) {
			put_number(sock, 'R', 0);
			syscall(SYS_exit, 0);
		} else if (!strcmp(text, "quit")) {
			put_number(sock, 'R', 0);
			_exit(0);
		} else {
			put_number(sock, 'E', ENOSYS);
		}
		/* A change of credentials forgets it, a new thread does not have it. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	}
	if (!is_thread)
		_exit(0);
}

int main(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	serve(0);
	return 0;
}
