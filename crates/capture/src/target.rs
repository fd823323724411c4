//! From a plan to what the eBPF programs have to know of an executable.

use gobin::{
    Abi, ConnectionPlan, DynamicType, EntryProbe, KeyPlan, Location, ProbePlan, ReadProbe,
    SiteKind, TypeRole,
};

use crate::skeleton::types;
use crate::{Error, Wanted};

/// What differs between executables.
#[derive(Debug, Default)]
pub(crate) struct Target {
    /// How the probed functions get their arguments.
    pub(crate) arguments: types::target,
    /// Where a connection's addresses and what the handshake agreed on are, as far as that is known.
    pub(crate) layout: types::layout,
    /// The types that the programs may follow, by the address of their descriptors.
    pub(crate) dynamic_types: Vec<(u64, types::dynamic_type)>,
}

/// Tells the programs what differs between executables, and checks that the rest is where they
/// expect it. `goroutines`: the ids of goroutines are asked for.
pub(crate) fn target(wanted: Wanted<'_>, goroutines: bool) -> Result<Target, Error> {
    match wanted {
        Wanted::Plaintext(plan) => {
            let mut arguments = plaintext_arguments(plan)?;
            if goroutines {
                arguments.goroutine_id = plan.goroutine_id.unwrap_or(0);
            }
            let connections = known_connections(plan);
            let types = connections.map_or(&[][..], |known| &known.types);
            Ok(Target {
                arguments,
                layout: connections.map(layout).unwrap_or_default(),
                dynamic_types: types.iter().map(dynamic_type).collect(),
            })
        }
        Wanted::Keys(plan) => Ok(Target {
            arguments: key_arguments(plan)?,
            ..Target::default()
        }),
    }
}

fn key_arguments(plan: &KeyPlan) -> Result<types::target, Error> {
    if let Ok(probe) = &plan.key_log {
        let expected: &[_] = if has_label(probe) {
            &[
                ("label.ptr", 1),
                ("label.len", 2),
                ("clientRandom.ptr", 3),
                ("clientRandom.len", 4),
                ("secret.ptr", 6),
                ("secret.len", 7),
            ]
        } else {
            &[
                ("clientRandom.ptr", 1),
                ("clientRandom.len", 2),
                ("secret.ptr", 4),
                ("secret.len", 5),
            ]
        };
        expect_arguments(probe, plan.abi, expected)?;
    }
    if let Ok(probe) = &plan.master_secret {
        let expected = [
            ("masterSecret.ptr", 2),
            ("masterSecret.len", 3),
            ("clientRandom.ptr", 5),
            ("clientRandom.len", 6),
        ];
        expect_arguments(probe, plan.abi, &expected)?;
    }
    Ok(types::target {
        stack_abi: u8::from(plan.abi == Abi::Stack),
        key_log_at_stack_check: at_stack_check(&plan.key_log),
        master_secret_at_stack_check: at_stack_check(&plan.master_secret),
        ..Default::default()
    })
}

fn plaintext_arguments(plan: &ProbePlan) -> Result<types::target, Error> {
    let expected = [("c", 0), ("typ", 1), ("data.ptr", 2), ("data.len", 3)];
    expect_arguments(&plan.write, plan.abi, &expected)?;
    if let Ok(close) = &plan.close {
        expect_arguments(close, plan.abi, &[("c", 0)])?;
    }
    let mut target = types::target {
        stack_abi: u8::from(plan.abi == Abi::Stack),
        write_at_stack_check: u8::from(plan.write.site.kind == SiteKind::StackCheckJump),
        close_at_stack_check: at_stack_check(&plan.close),
        write_site: plan.write.site.vaddr.0,
        read_site: first_site(&plan.read),
        ..Default::default()
    };
    match &plan.read {
        ReadProbe::Copy {
            receiver,
            source,
            length,
            ..
        } => {
            target.read_receiver = on_stack("receiver", *receiver)?;
            // runtime.memmove(to, from unsafe.Pointer, n uintptr)
            target.read_source = in_register_or_on_stack("source", *source, 1, plan.abi)?;
            target.read_length = in_register_or_on_stack("length", *length, 2, plan.abi)?;
        }
        ReadProbe::Returns {
            receiver,
            buffer,
            capacity,
            count,
            ..
        } => {
            target.read_receiver = on_stack("receiver", *receiver)?;
            target.read_source = on_stack("buffer", *buffer)?;
            target.read_capacity = on_stack("capacity", *capacity)?;
            target.read_length = in_register_or_on_stack("count", *count, 0, plan.abi)?;
        }
    }
    Ok(target)
}

fn first_site(read: &ReadProbe) -> u64 {
    let sites = read.sites().iter().map(|site| site.vaddr.0);
    sites.min().unwrap_or(0)
}

/// Nothing, if the programs can't be sure of the addresses at which the executable runs.
fn known_connections(plan: &ProbePlan) -> Option<&ConnectionPlan> {
    // gotls.bpf.c, load_bias: a hit's distance from the first site has to be less than a page.
    const SMALLEST_PAGE: u64 = 4096;

    let first = first_site(&plan.read);
    let near = |vaddr: u64| vaddr - first < SMALLEST_PAGE;
    let all_near = plan.read.sites().iter().all(|site| near(site.vaddr.0));
    plan.connections.as_ref().ok().filter(|_| all_near)
}

fn layout(plan: &ConnectionPlan) -> types::layout {
    let (conn, socket, address) = (plan.tls_conn, plan.socket, plan.tcp_addr);
    types::layout {
        known: 1,
        tls_conn: conn.conn,
        tls_is_client: conn.is_client,
        tls_handshake: conn.handshake,
        tls_version: conn.version,
        tls_cipher_suite: conn.cipher_suite,
        tls_resumed: conn.resumed,
        tls_server_name: conn.server_name,
        tls_protocol: conn.protocol,
        socket_fd: socket.fd,
        fd_descriptor: socket.descriptor,
        fd_local: socket.local,
        fd_remote: socket.remote,
        tcp_ip: address.ip,
        tcp_port: address.port,
        tcp_zone: address.zone,
        unix_name: plan.unix_name.unwrap_or(0),
    }
}

fn dynamic_type(listed: &DynamicType) -> (u64, types::dynamic_type) {
    // connection.h, enum type_role
    let (role, offset) = match listed.role {
        TypeRole::TcpConn => (1, 0),
        TypeRole::UnixConn => (2, 0),
        TypeRole::TcpAddr => (3, 0),
        TypeRole::UnixAddr => (4, 0),
        TypeRole::Wrapper(offset) => (5, offset),
    };
    (listed.descriptor.0, types::dynamic_type { role, offset })
}

fn at_stack_check(probe: &Result<EntryProbe, gobin::Error>) -> u8 {
    probe
        .as_ref()
        .is_ok_and(|probe| probe.site.kind == SiteKind::StackCheckJump)
        .into()
}

fn on_stack(what: &'static str, location: Location) -> Result<u32, Error> {
    match location {
        Location::Stack(offset) => Ok(offset),
        Location::ArgumentRegister(_) => Err(Error::UnsupportedLocation { what, location }),
    }
}

/// The place on the stack in the stack ABI; 0 in the register ABI, where it has to be `register`.
fn in_register_or_on_stack(
    what: &'static str,
    location: Location,
    register: u8,
    abi: Abi,
) -> Result<u32, Error> {
    match (abi, location) {
        (Abi::Stack, Location::Stack(offset)) => Ok(offset),
        (Abi::Register, Location::ArgumentRegister(found)) if found == register => Ok(0),
        _ => Err(Error::UnsupportedLocation { what, location }),
    }
}

/// The programs take the n-th word of a function's arguments from where the ABI has it at the entry.
fn expect_arguments(
    probe: &EntryProbe,
    abi: Abi,
    expected: &[(&'static str, u8)],
) -> Result<(), Error> {
    for &(what, word) in expected {
        let expected = match abi {
            Abi::Register => Location::ArgumentRegister(word),
            Abi::Stack => Location::Stack(8 * (u32::from(word) + 1)), // registers.h, STACK_ARGUMENT
        };
        let found = probe
            .arguments
            .iter()
            .find(|argument| argument.name == what);
        let location = found.map(|argument| argument.location);
        if location != Some(expected) {
            let location = location.unwrap_or(expected);
            return Err(Error::UnsupportedLocation { what, location });
        }
    }
    Ok(())
}

/// Since Go 1.12 writeKeyLog has one.
pub(crate) fn has_label(key_log: &EntryProbe) -> bool {
    key_log
        .arguments
        .iter()
        .any(|argument| argument.name == "label.ptr")
}
