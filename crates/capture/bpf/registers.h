/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * What a uprobe program sees of the CPU, and where Go's two calling conventions keep arguments.
 *
 * The layouts are kernel UAPI (arch/{x86,arm64}/include/uapi/asm/ptrace.h) and never change. They
 * are written out here so that either architecture's programs compile on any machine.
 */
#ifndef ECAPTURE_REGISTERS_H
#define ECAPTURE_REGISTERS_H

#include <linux/types.h>
#include <stdbool.h>

#if defined(__TARGET_ARCH_x86)

struct registers {
	__u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
	__u64 orig_ax, ip, cs, flags, sp, ss;
};

/* Go's register ABI: integer arguments in this order (src/cmd/compile/abi-internal.md). */
#define ARGUMENT_0 ax
#define ARGUMENT_1 bx
#define ARGUMENT_2 cx
#define ARGUMENT_3 di
#define ARGUMENT_4 si
#define ARGUMENT_5 r8
#define ARGUMENT_6 r9
#define ARGUMENT_7 r10

#define INSTRUCTION ip

/* The goroutine's runtime.g, in the register ABI at any time; in the stack ABI it is at hand at the
 * jump of a stack check, which has just loaded it from thread-local storage. 0: not at hand. */
static __always_inline __u64 current_g(const struct registers *registers, bool stack_abi,
				       bool at_stack_check)
{
	__u64 r14 = registers->r14, cx = registers->cx;

	/* The compiler would choose between their addresses, and verifiers refuse to load from the
	 * context at an address that is not constant. */
	asm volatile("" : "+r"(r14), "+r"(cx));
	if (!stack_abi)
		return r14;
	return at_stack_check ? cx : 0;
}

#define X86_CARRY (1 << 0)
#define X86_ZERO  (1 << 6)

/* `jbe`, the jump to runtime.morestack, is taken. */
static __always_inline bool stack_will_grow(const struct registers *registers)
{
	return registers->flags & (X86_CARRY | X86_ZERO);
}

#elif defined(__TARGET_ARCH_arm64)

struct registers {
	__u64 x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15;
	__u64 x16, x17, x18, x19, x20, x21, x22, x23, x24, x25, x26, x27, x28, x29, x30;
	__u64 sp, pc, pstate;
};

#define ARGUMENT_0 x0
#define ARGUMENT_1 x1
#define ARGUMENT_2 x2
#define ARGUMENT_3 x3
#define ARGUMENT_4 x4
#define ARGUMENT_5 x5
#define ARGUMENT_6 x6
#define ARGUMENT_7 x7

#define INSTRUCTION pc

/* The goroutine's runtime.g. */
static __always_inline __u64 current_g(const struct registers *registers, bool stack_abi,
				       bool at_stack_check)
{
	(void)stack_abi;
	(void)at_stack_check;
	return registers->x28;
}

#define ARM64_CARRY (1 << 29)
#define ARM64_ZERO  (1 << 30)

/* `b.ls`, the jump to runtime.morestack, is taken. */
static __always_inline bool stack_will_grow(const struct registers *registers)
{
	return !(registers->pstate & ARM64_CARRY) || (registers->pstate & ARM64_ZERO);
}

#else
#error "registers.h: define __TARGET_ARCH_x86 or __TARGET_ARCH_arm64"
#endif

/* Go's stack ABI: the n-th word of the arguments, in bytes above SP at a function's entry. Below it
 * lies the return address (amd64) or the slot that the callee saves the link register in (arm64).
 */
#define STACK_ARGUMENT(n) (8 * ((n) + 1))

#endif
