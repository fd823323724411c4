/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * What differs between executables. An object that serves one has it as constant data, set before
 * loading, so that the verifier removes what this executable does not need. An object that serves
 * many looks it up by the cookie that each probe was attached with.
 */
#ifndef ECAPTURE_TARGET_H
#define ECAPTURE_TARGET_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* How the target passes arguments. */
struct target {
	/* The stack ABI (Go < 1.17, arm64 < 1.18), not the register ABI. */
	__u8 stack_abi;
	/* The site is the jump of the stack check, which runs again once the stack has grown. */
	__u8 write_at_stack_check;
	__u8 close_at_stack_check;
	__u8 key_log_at_stack_check;
	__u8 master_secret_at_stack_check;
	/* Where (*Conn).Read's site finds these, in bytes above SP. The stack ABI needs all of
	 * them, the register ABI has source, length and count in registers. */
	__u32 read_receiver;
	__u32 read_source;
	__u32 read_length;
	__u32 read_capacity;
	/* Address as linked of the site in writeRecordLocked, and of the first one in Read. */
	__u64 write_site;
	__u64 read_site;
	/* Offset of runtime.g's goid; 0: not known. */
	__u32 goroutine_id;
	/* The number of the first target in the same file, which has one for each TLS package. */
	__u32 file;
};

/* Where things are, in bytes from the start of the struct; crates/gobin/src/connection.rs. */
struct layout {
	/* crypto/tls.Conn; 0: nothing here is known. */
	__u8 known;
	__u32 tls_conn;
	__u32 tls_is_client;
	__u32 tls_handshake;
	__u32 tls_version;
	__u32 tls_cipher_suite;
	__u32 tls_resumed;
	__u32 tls_server_name;
	__u32 tls_protocol;
	/* From net.TCPConn and net.UnixConn to net.netFD, and there. */
	__u32 socket_fd;
	__u32 fd_descriptor;
	__u32 fd_local;
	__u32 fd_remote;
	/* net.TCPAddr and net.UnixAddr */
	__u32 tcp_ip;
	__u32 tcp_port;
	__u32 tcp_zone;
	__u32 unix_name;
};

/* Of the one executable that this object serves. */
const volatile struct target only_target = {};
const volatile struct layout only_layout = {};
/* Its number, which tells it apart from those of other objects that share the maps. */
const volatile __u32 only_number = 0;

/* This object serves as many as there is room for in `executables`. */
const volatile __u8 many_targets = 0;

struct executable {
	struct target target;
	struct layout layout;
};

/* By number. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set by user space */
	__type(key, __u32);
	__type(value, struct executable);
} executables SEC(".maps");

/* Which executable a program was attached to. */
static __always_inline __u32 target_number(const void *context)
{
	/* Linux 5.15; the verifier does not look at what an object that serves one never reaches.
	 */
	return many_targets ? bpf_get_attach_cookie((void *)context) : only_number;
}

static __always_inline const volatile struct target *find_target(__u32 number)
{
	const struct executable *executable;

	if (!many_targets)
		return &only_target;
	executable = bpf_map_lookup_elem(&executables, &number);
	return executable ? &executable->target : NULL;
}

static __always_inline const volatile struct layout *find_layout(__u32 number)
{
	const struct executable *executable;

	if (!many_targets)
		return &only_layout;
	executable = bpf_map_lookup_elem(&executables, &number);
	return executable ? &executable->layout : NULL;
}

#endif
