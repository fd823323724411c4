// SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0)
/*
 * Uprobes in a Go program's crypto/tls: plaintext from (*Conn).writeRecordLocked and (*Conn).Read,
 * the end of connections from (*Conn).Close, keys from (*Config).writeKeyLog and
 * keysFromMasterSecret.
 *
 * The sites are chosen by crates/gobin; what differs between executables is in target.h.
 *
 * Two rules shape the code. A payload is read straight from the target into the ring buffer, in a
 * record of about its size: there is no scratch buffer, because since Linux 6.0 a uprobe program
 * can be preempted by another one on the same CPU. And whatever does not arrive is counted.
 */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include "connection.h"
#include "process.h"
#include "record.h"
#include "registers.h"
#include "ring.h"
#include "target.h"
#include "user_memory.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* crypto/tls, recordTypeApplicationData */
#define RECORD_TYPE_HANDSHAKE	     22
#define RECORD_TYPE_APPLICATION_DATA 23
/* RFC 8446, section 4: the first byte of a handshake message. */
#define HANDSHAKE_CLIENT_HELLO 1
#define HANDSHAKE_SERVER_HELLO 2
/* Offset of the data word of the interface tls.Conn.conn, the same in every Go version. */
#define TLS_CONN_INNER_DATA 8
/* The load bias is a multiple of this, whatever the kernel's page size. */
#define SMALLEST_PAGE 4096
/* One call may pass at most this many full records: 1 GiB. */
#define PARTS_MAX 65536
/* The same where the kernel has no bpf_loop (before 5.17), so that the verifier walks through every
 * single one: 1 MiB. */
#define PARTS_MAX_WALKED 64
#define PAGE_SIZE	 4096

/* Never set. */
const volatile __u8 never = 0;

/* Keeps a program's variables on the stack of the thread that hit the probe. Kernels since 6.13
 * would move those of a program with many to memory of which each CPU has one piece per program
 * (kernel/bpf/verifier.c, bpf_enable_priv_stack). But a uprobe program can be preempted, by itself
 * too, and then two threads change the same variables: records are lost or wrong, and the kernel
 * may crash. A program with a tail call is left alone, even if the verifier finds that it is never
 * reached, and removes it. */
static __always_inline void keep_stack(void *registers)
{
	if (never)
		bpf_tail_call(registers, (void *)0, 0);
}

/* Capture at most this many bytes of a call; 0: all. */
const volatile __u64 capture_limit = 0;
/* For user space, which compares the layouts of these types with its own. */
struct data_record *unused_data_record __attribute__((unused));
struct close_record *unused_close_record __attribute__((unused));
struct connection_record *unused_connection_record __attribute__((unused));
struct key_record *unused_key_record __attribute__((unused));

/* The n-th word of a function's arguments, at its entry; n is a constant. */
static __always_inline bool argument(const volatile struct target *target,
				     const struct registers *registers, const int n, __u64 *word)
{
	if (target->stack_abi)
		return read_word(word, registers->sp + STACK_ARGUMENT(n));
	switch (n) {
	case 0:
		*word = registers->ARGUMENT_0;
		return true;
	case 1:
		*word = registers->ARGUMENT_1;
		return true;
	case 2:
		*word = registers->ARGUMENT_2;
		return true;
	case 3:
		*word = registers->ARGUMENT_3;
		return true;
	case 4:
		*word = registers->ARGUMENT_4;
		return true;
	case 5:
		*word = registers->ARGUMENT_5;
		return true;
	case 6:
		*word = registers->ARGUMENT_6;
		return true;
	case 7:
		*word = registers->ARGUMENT_7;
		return true;
	}
	return false;
}

/* Look for the process in the table below; and capture from those that are not in it. */
const volatile __u8 filter_by_process = 0;
const volatile __u8 unlisted_processes_too = 0;

/* A process and a file that it executes, or has mapped, by the number of its first target. A file
 * that several overlays show has as many numbers, and a program on it for each; only one of them is
 * to tell of a process. */
struct process_file {
	__u32 pid;
	__u32 file;
};

/* Stands for whatever file: the process is in the table. */
#define ANY_FILE ((__u32)-1)

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set by user space */
	__type(key, struct process_file);
	__type(value, __u8);
} wanted_processes SEC(".maps");

/* Says who runs, and whether the user wants to see it. */
static __always_inline bool wanted_process(struct process *process,
					   const volatile struct target *target)
{
	struct process_file key = {};

	if (!current_process(process) || (filter_pid && process->pid != filter_pid) ||
	    !wanted_user())
		return false;
	if (!filter_by_process)
		return true;
	key.pid = process->pid;
	key.file = target->file;
	if (bpf_map_lookup_elem(&wanted_processes, &key))
		return true;
	if (!unlisted_processes_too)
		return false;
	key.file = ANY_FILE;
	return !bpf_map_lookup_elem(&wanted_processes, &key);
}

/* One call of Write or Read, or what is left of it. */
struct call {
	__u64 time_ns;
	__u64 conn;
	struct process process;
	__u64 first_seen_ns;
	enum direction direction;
	/* Where the stream was when the call began. Only one call at a time moves it: Go has a lock
	 * for each direction. */
	struct stream stream;
	/* Address and length of the plaintext, and how much of it the user wants. */
	__u64 source;
	__u64 length;
	__u64 captured;
	/* Bytes before the part in hand. */
	__u64 offset;
	__u64 goroutine;
};

static __always_inline struct connection *find_connection(const struct call *call)
{
	struct connection_key key = {.conn = call->conn, .pid = call->process.pid};
	struct connection fresh = {.first_seen_ns = call->time_ns};
	struct connection *connection;
	__u64 flags = BPF_ANY;

	if (!read_word(&fresh.inner, call->conn + TLS_CONN_INNER_DATA))
		return NULL;
	connection = bpf_map_lookup_elem(&connections, &key);
	if (connection && connection->inner == fresh.inner)
		return connection;
	if (!connection) {
		connection = bpf_map_lookup_elem(&closed_connections, &key);
		if (connection && connection->inner == fresh.inner)
			return connection;
		/* If another thread is about to add it too, the first one does. */
		flags = BPF_NOEXIST;
	}
	bpf_map_update_elem(&connections, &key, &fresh, flags);
	return bpf_map_lookup_elem(&connections, &key);
}

/* Accounts for the bytes and records of a call, whatever became of them. While it was going on the
 * connection may have been closed or displaced. */
static __always_inline void advance(struct connection *connection, const struct call *call,
				    __u64 records)
{
	struct connection_key key = {.conn = call->conn, .pid = call->process.pid};

	if (connection->first_seen_ns != call->first_seen_ns || connection->moved) {
		connection = lookup_connection(&key);
		if (!connection || connection->first_seen_ns != call->first_seen_ns)
			return;
	}
	connection->streams[call->direction].offset = call->stream.offset + call->length;
	connection->streams[call->direction].sequence = call->stream.sequence + records;
}

enum outcome { SENT, LOST, FAULTED };

/* Sends `length` bytes at `source` in a record with room for `room` bytes, a constant: the verifier
 * wants to know the size of a reservation, and that `length` fits. */
static __always_inline enum outcome send_in(const __u32 room, const struct call *call, __u64 source,
					    __u64 length, __u64 omitted,
					    enum missing_reason missing)
{
	struct data_record *record;

	record = bpf_ringbuf_reserve(&ring, sizeof(*record) + room, 0);
	if (!record)
		return LOST;
	if (room) {
		/* Never so: the caller chose the room. The verifier can't tell once the compiler
		 * keeps the length in two places, and the barrier keeps the compiler from knowing
		 * better. */
		asm volatile("" : "+r"(length));
		if (length > room)
			length = room;
		if (bpf_probe_read_user(record + 1, length, (void *)source)) {
			bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
			return FAULTED;
		}
	}
	fill_connection_header(&record->header, &call->process, call->time_ns, RECORD_DATA,
			       call->conn, call->first_seen_ns);
	record->stream_offset = call->stream.offset + call->offset;
	record->call_length = call->length;
	record->call_offset = call->offset;
	record->omitted = omitted;
	record->goroutine = call->goroutine;
	record->length = length;
	record->sequence = call->stream.sequence + call->offset / PAYLOAD_MAX;
	record->direction = call->direction;
	record->missing = missing;
	__builtin_memset(record->reserved, 0, sizeof(record->reserved));
	bpf_ringbuf_submit(record, wakeup_flags());
	return SENT;
}

/* Picks the smallest size class that holds the payload. */
static __always_inline enum outcome send(const struct call *call, __u64 source, __u64 length,
					 __u64 omitted, enum missing_reason missing)
{
	if (length <= 64)
		return send_in(64, call, source, length, omitted, missing);
	if (length <= 128)
		return send_in(128, call, source, length, omitted, missing);
	if (length <= 256)
		return send_in(256, call, source, length, omitted, missing);
	if (length <= 512)
		return send_in(512, call, source, length, omitted, missing);
	if (length <= 1024)
		return send_in(1024, call, source, length, omitted, missing);
	if (length <= 2048)
		return send_in(2048, call, source, length, omitted, missing);
	if (length <= 4096)
		return send_in(4096, call, source, length, omitted, missing);
	if (length <= 8192)
		return send_in(8192, call, source, length, omitted, missing);
	return send_in(PAYLOAD_MAX, call, source, length, omitted, missing);
}

/* Has the kernel fetch the pages of a payload. Not done while a record is reserved: nobody can read
 * the ring beyond a reservation, and a page fault can take long. */
static __always_inline void fault_in(__u64 source, __u64 length)
{
	__u8 byte;

	for (int page = 0; page < PAYLOAD_MAX / PAGE_SIZE; page++) {
		if ((__u64)page * PAGE_SIZE >= length)
			break;
		bpf_copy_from_user(&byte, sizeof(byte), (void *)(source + page * PAGE_SIZE));
	}
	bpf_copy_from_user(&byte, sizeof(byte), (void *)(source + length - 1));
}

/* Counts what became of a part of a call, once everything was tried. */
static __always_inline void finish_part(struct call *call, enum outcome outcome, __u64 length,
					__u64 omitted)
{
	if (outcome == FAULTED) {
		/* A truncated call's omitted bytes go with the unreadable ones: nobody has either.
		 */
		outcome = send_in(0, call, 0, 0, length + omitted, MISSING_UNREADABLE);
		if (outcome == SENT) {
			count(&shared.unreadable_records, 1);
			count(&shared.unreadable_bytes, length + omitted);
		}
	}
	if (outcome == LOST) {
		count(&shared.lost_records, 1);
		count(&shared.lost_bytes, length + omitted);
	}
}

/* Sends a part of a call that fills a record. The offset comes from the index: a sum would be
 * another value in each iteration for the verifier, which then would never see the loop repeat. */
static long send_full_part(__u32 index, struct call *call)
{
	enum outcome outcome;
	__u64 source;

	call->offset = (__u64)index * PAYLOAD_MAX;
	source = call->source + call->offset;
	outcome = send_in(PAYLOAD_MAX, call, source, PAYLOAD_MAX, 0, MISSING_NOTHING);
	if (outcome == FAULTED && may_fault) {
		fault_in(source, PAYLOAD_MAX);
		outcome = send_in(PAYLOAD_MAX, call, source, PAYLOAD_MAX, 0, MISSING_NOTHING);
	}
	finish_part(call, outcome, PAYLOAD_MAX, 0);
	return 0;
}

/* Sends what is left of a call, which usually is all of it. */
static __always_inline void send_last_part(struct call *call)
{
	__u64 source = call->source + call->offset;
	__u64 length = call->captured - call->offset;
	enum missing_reason missing = MISSING_NOTHING;
	enum outcome outcome;
	__u64 omitted;

	if (length > PAYLOAD_MAX) {
		missing = MISSING_TOO_LONG;
		count(&shared.too_long_bytes, call->length - call->offset - PAYLOAD_MAX);
		length = PAYLOAD_MAX;
	} else if (call->captured < call->length) {
		missing = MISSING_TRUNCATED;
	}
	omitted = call->length - call->offset - length;
	outcome = send(call, source, length, omitted, missing);
	if (outcome == FAULTED && may_fault) {
		fault_in(source, length);
		outcome = send(call, source, length, omitted, missing);
	}
	finish_part(call, outcome, length, omitted);
}

/* How to repeat something. Programs are there twice, because a kernel that does not know bpf_loop
 * refuses a program that holds a call of it, even where it is never reached. */
enum repeat { BY_HELPER, BY_WALKING };

/* Sends a call: parts of PAYLOAD_MAX bytes, then one of 1 to PAYLOAD_MAX bytes. Returns how many
 * parts there were. */
static __always_inline __u64 send_call(struct call *call, const enum repeat repeat)
{
	__u64 full_parts = (call->captured - 1) / PAYLOAD_MAX;

	if (!full_parts) {
		/* Nearly always. */
	} else if (repeat == BY_HELPER) {
		if (full_parts > PARTS_MAX)
			full_parts = PARTS_MAX;
		bpf_loop(full_parts, send_full_part, call, 0);
	} else {
		if (full_parts > PARTS_MAX_WALKED)
			full_parts = PARTS_MAX_WALKED;
		for (__u32 part = 0; part < PARTS_MAX_WALKED; part++) {
			if (part >= full_parts)
				break;
			send_full_part(part, call);
		}
	}
	call->offset = full_parts * PAYLOAD_MAX;
	send_last_part(call);
	return full_parts + 1;
}

/* The id of the goroutine whose runtime.g this is; 0: not known. */
static __always_inline __u64 goroutine_id(const volatile struct target *target, __u64 g)
{
	__u64 id;

	if (!target->goroutine_id || !g || !peek(&id, sizeof(id), g + target->goroutine_id))
		return 0;
	return id;
}

/* What leads from linked to actual addresses. `site` is the linked address of the first instruction
 * that a program is attached to; the others are less than a page behind it. */
static __always_inline __u64 load_bias(const struct registers *registers, __u64 site)
{
	return (registers->INSTRUCTION - site) & ~((__u64)SMALLEST_PAGE - 1);
}

/* Where a probe was hit. */
struct hit {
	const volatile struct target *target;
	__u32 target_number;
	__u64 g;
	__u64 load_bias;
};

static __always_inline void capture(enum direction direction, __u64 conn, __u64 source,
				    __u64 length, const struct hit *hit, const enum repeat repeat)
{
	struct call call = {
		.conn = conn,
		.direction = direction,
		.source = source,
		.length = length,
		.captured = length,
	};
	struct connection *connection;

	/* A Go slice's length is an int: a larger number is not a length. */
	if (!length || length >> 63)
		return;
	if (!wanted_process(&call.process, hit->target))
		return;
	call.time_ns = bpf_ktime_get_ns();
	connection = find_connection(&call);
	if (!connection) {
		count(&shared.lost_records, 1);
		count(&shared.lost_bytes, length);
		return;
	}
	call.first_seen_ns = connection->first_seen_ns;
	call.stream = connection->streams[direction];
	if (!connection->announced)
		send_connection(conn, (__u64)call.process.pid << 32 | call.process.tid,
				hit->load_bias, call.time_ns, hit->target_number);
	call.goroutine = goroutine_id(hit->target, hit->g);
	if (capture_limit && call.captured > capture_limit)
		call.captured = capture_limit;
	advance(connection, &call, send_call(&call, repeat));
}

/* Ends the connection at this address, if there is one, and says how far it got, unless nothing of
 * it was ever seen. */
static __always_inline void end_connection(const struct process *process, __u64 conn,
					   enum close_cause cause)
{
	struct connection_key key = {.conn = conn, .pid = process->pid};
	struct connection *connection = bpf_map_lookup_elem(&connections, &key);
	struct close_record *record;

	if (!connection)
		return;
	if (!connection->announced && !connection->streams[0].sequence &&
	    !connection->streams[1].sequence)
		goto move;
	record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);
	if (record) {
		fill_connection_header(&record->header, process, bpf_ktime_get_ns(), RECORD_CLOSE,
				       conn, connection->first_seen_ns);
		for (int direction = 0; direction < 2; direction++) {
			record->stream_length[direction] = connection->streams[direction].offset;
			record->sequence[direction] = connection->streams[direction].sequence;
		}
		record->cause = cause;
		__builtin_memset(record->reserved, 0, sizeof(record->reserved));
		bpf_ringbuf_submit(record, wakeup_flags());
	} else {
		count(&shared.lost_records, 1);
	}
move:
	if (cause == CLOSE_CALLED)
		bpf_map_update_elem(&closed_connections, &key, connection, BPF_ANY);
	connection->moved = 1;
	bpf_map_delete_elem(&connections, &key);
}

/* A hello begins a connection. If one is known at this address it was dropped without Close, and
 * its memory used again, which the word that we compare cannot tell if that memory was used again
 * too. (A client that renegotiates, which TLS 1.2 allows and Go refuses unless asked to, therefore
 * goes on as another connection.) */
static __always_inline void begin_connection(__u64 conn, __u64 source,
					     const volatile struct target *target)
{
	struct connection fresh = {.from_start = 1};
	struct connection_key key = {.conn = conn};
	struct process process = {};
	__u8 type;

	if (!peek(&type, sizeof(type), source))
		return;
	if (type != HANDSHAKE_CLIENT_HELLO && type != HANDSHAKE_SERVER_HELLO)
		return;
	if (!wanted_process(&process, target))
		return;
	end_connection(&process, conn, CLOSE_DROPPED);
	if (!read_word(&fresh.inner, conn + TLS_CONN_INNER_DATA))
		return;
	key.pid = process.pid;
	fresh.first_seen_ns = bpf_ktime_get_ns();
	bpf_map_update_elem(&connections, &key, &fresh, BPF_ANY);
}

#define BOTH_WAYS(name)                                                                            \
	SEC("uprobe")                                                                              \
	int name(struct registers *registers)                                                      \
	{                                                                                          \
		keep_stack(registers);                                                             \
		return name##_with(registers, BY_HELPER);                                          \
	}                                                                                          \
	SEC("uprobe")                                                                              \
	int name##_walked(struct registers *registers)                                             \
	{                                                                                          \
		keep_stack(registers);                                                             \
		return name##_with(registers, BY_WALKING);                                         \
	}

/* func (c *Conn) writeRecordLocked(typ recordType, data []byte) (int, error) */
static __always_inline int write_record_with(const struct registers *registers,
					     const enum repeat repeat)
{
	__u32 number = target_number(registers);
	const volatile struct target *target = find_target(number);
	__u64 conn, type, source, length;
	struct hit hit;

	if (!target)
		return 0;
	hit.target = target;
	hit.target_number = number;
	hit.g = current_g(registers, target->stack_abi, target->write_at_stack_check);
	hit.load_bias = load_bias(registers, target->write_site);
	if (target->write_at_stack_check && stack_will_grow(registers))
		return 0;
	if (!argument(target, registers, 1, &type))
		goto unknown;
	type = (__u8)type;
	if (type != RECORD_TYPE_APPLICATION_DATA && type != RECORD_TYPE_HANDSHAKE)
		return 0;
	if (!argument(target, registers, 0, &conn) || !argument(target, registers, 2, &source) ||
	    !argument(target, registers, 3, &length))
		goto unknown;
	if (type == RECORD_TYPE_HANDSHAKE)
		begin_connection(conn, source, target);
	else
		capture(DIRECTION_WRITE, conn, source, length, &hit, repeat);
	return 0;

unknown:
	count(&shared.unknown_calls, 1);
	return 0;
}

BOTH_WAYS(write_record)

/* The call of runtime.memmove(to, from unsafe.Pointer, n uintptr) in (*Conn).Read, with which
 * plaintext goes to the caller. */
static __always_inline int read_copy_with(const struct registers *registers,
					  const enum repeat repeat)
{
	__u32 number = target_number(registers);
	const volatile struct target *target = find_target(number);
	__u64 conn, source, length;
	struct hit hit;

	if (!target)
		return 0;
	hit.target = target;
	hit.target_number = number;
	hit.g = current_g(registers, target->stack_abi, false);
	hit.load_bias = load_bias(registers, target->read_site);
	if (target->stack_abi) {
		if (!read_word(&source, registers->sp + target->read_source) ||
		    !read_word(&length, registers->sp + target->read_length))
			goto unknown;
	} else {
		source = registers->ARGUMENT_1;
		length = registers->ARGUMENT_2;
	}
	if (!read_word(&conn, registers->sp + target->read_receiver))
		goto unknown;
	capture(DIRECTION_READ, conn, source, length, &hit, repeat);
	return 0;

unknown:
	count(&shared.unknown_calls, 1);
	return 0;
}

BOTH_WAYS(read_copy)

/* A return of func (c *Conn) Read(b []byte) (int, error). The buffer's address comes from the
 * caller's frame, because the stack may have moved since the call. */
static __always_inline int read_return_with(const struct registers *registers,
					    const enum repeat repeat)
{
	__u32 number = target_number(registers);
	const volatile struct target *target = find_target(number);
	__u64 conn, source, length, capacity;
	struct hit hit;

	if (!target)
		return 0;
	hit.target = target;
	hit.target_number = number;
	hit.g = current_g(registers, target->stack_abi, false);
	hit.load_bias = load_bias(registers, target->read_site);
	if (target->stack_abi) {
		if (!read_word(&length, registers->sp + target->read_length))
			goto unknown;
	} else {
		length = registers->ARGUMENT_0;
	}
	if (!length || length >> 63)
		return 0;
	if (!read_word(&conn, registers->sp + target->read_receiver) ||
	    !read_word(&source, registers->sp + target->read_source) ||
	    !read_word(&capacity, registers->sp + target->read_capacity) || length > capacity)
		goto unknown;
	capture(DIRECTION_READ, conn, source, length, &hit, repeat);
	return 0;

unknown:
	count(&shared.unknown_calls, 1);
	return 0;
}

BOTH_WAYS(read_return)

/* func (c *Conn) Close() error */
SEC("uprobe")
int close_conn(struct registers *registers)
{
	__u32 number = target_number(registers);
	const volatile struct target *target = find_target(number);
	struct process process = {};
	__u64 conn;

	keep_stack(registers);
	if (!target || (target->close_at_stack_check && stack_will_grow(registers)))
		return 0;
	if (argument(target, registers, 0, &conn) && wanted_process(&process, target))
		end_connection(&process, conn, CLOSE_CALLED);
	return 0;
}

/* A secret and what it belongs to, as addresses in the target-> */
struct key {
	/* 0: the label is CLIENT_RANDOM. */
	__u64 label;
	__u64 label_length;
	__u64 client_random;
	__u64 client_random_length;
	__u64 secret;
	__u64 secret_length;
};

static const char CLIENT_RANDOM[13] = "CLIENT_RANDOM";

/* What a key_record tells. Read before a record is reserved: nobody else looks at the label, so
 * that it may never have been in memory. */
struct key_text {
	__u8 label[KEY_LABEL_MAX];
	__u8 client_random[CLIENT_RANDOM_LEN];
	__u8 secret[KEY_SECRET_MAX];
};

static __always_inline int send_key(const struct key *key, const volatile struct target *target)
{
	__u64 label_length = key->label ? key->label_length : sizeof(CLIENT_RANDOM);
	__u64 secret_length = key->secret_length;
	struct process process = {};
	struct key_text text = {};
	struct key_record *record;

	if (!wanted_process(&process, target))
		return 0;
	if (!label_length || label_length > KEY_LABEL_MAX || !secret_length ||
	    secret_length > KEY_SECRET_MAX || key->client_random_length != CLIENT_RANDOM_LEN) {
		count(&shared.unknown_calls, 1);
		return 0;
	}
	if (!key->label)
		__builtin_memcpy(text.label, CLIENT_RANDOM, sizeof(CLIENT_RANDOM));
	else if (!read_user(text.label, label_length, key->label))
		goto unreadable;
	if (!read_user(text.client_random, CLIENT_RANDOM_LEN, key->client_random) ||
	    !read_user(text.secret, secret_length, key->secret))
		goto unreadable;
	record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);
	if (!record) {
		count(&shared.lost_records, 1);
		return 0;
	}
	fill_header(&record->header, &process, bpf_ktime_get_ns(), RECORD_KEY);
	record->label_length = label_length;
	record->secret_length = secret_length;
	__builtin_memset(record->reserved, 0, sizeof(record->reserved));
	__builtin_memcpy(record->label, text.label, sizeof(text.label));
	__builtin_memcpy(record->client_random, text.client_random, sizeof(text.client_random));
	__builtin_memcpy(record->secret, text.secret, sizeof(text.secret));
	bpf_ringbuf_submit(record, wakeup_flags());
	return 0;

unreadable:
	count(&shared.unknown_calls, 1);
	return 0;
}

/* func (c *Config) writeKeyLog(label string, clientRandom, secret []byte) error */
SEC("uprobe")
int write_key_log(struct registers *registers)
{
	__u32 number = target_number(registers);
	const volatile struct target *target = find_target(number);
	struct key key = {};

	keep_stack(registers);
	if (!target || (target->key_log_at_stack_check && stack_will_grow(registers)))
		return 0;
	if (!argument(target, registers, 1, &key.label) ||
	    !argument(target, registers, 2, &key.label_length) ||
	    !argument(target, registers, 3, &key.client_random) ||
	    !argument(target, registers, 4, &key.client_random_length) ||
	    !argument(target, registers, 6, &key.secret) ||
	    !argument(target, registers, 7, &key.secret_length)) {
		count(&shared.unknown_calls, 1);
		return 0;
	}
	return send_key(&key, target);
}

/* func (c *Config) writeKeyLog(clientRandom, masterSecret []byte) error, before Go 1.12 */
SEC("uprobe")
int write_key_log_unlabelled(struct registers *registers)
{
	__u32 number = target_number(registers);
	const volatile struct target *target = find_target(number);
	struct key key = {};

	keep_stack(registers);
	if (!target || (target->key_log_at_stack_check && stack_will_grow(registers)))
		return 0;
	if (!argument(target, registers, 1, &key.client_random) ||
	    !argument(target, registers, 2, &key.client_random_length) ||
	    !argument(target, registers, 4, &key.secret) ||
	    !argument(target, registers, 5, &key.secret_length)) {
		count(&shared.unknown_calls, 1);
		return 0;
	}
	return send_key(&key, target);
}

/* func keysFromMasterSecret(version uint16, suite *cipherSuite, masterSecret, clientRandom,
 * serverRandom []byte, macLen, keyLen, ivLen int), called in full and resumed handshakes alike */
SEC("uprobe")
int master_secret(struct registers *registers)
{
	__u32 number = target_number(registers);
	const volatile struct target *target = find_target(number);
	struct key key = {};

	keep_stack(registers);
	if (!target || (target->master_secret_at_stack_check && stack_will_grow(registers)))
		return 0;
	if (!argument(target, registers, 2, &key.secret) ||
	    !argument(target, registers, 3, &key.secret_length) ||
	    !argument(target, registers, 5, &key.client_random) ||
	    !argument(target, registers, 6, &key.client_random_length)) {
		count(&shared.unknown_calls, 1);
		return 0;
	}
	return send_key(&key, target);
}
