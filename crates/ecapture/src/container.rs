//! Which container a process is in, as its cgroup's path tells.

use std::path::Path;

use capture::{ProcessInfo, environment_variable};
use serde::Serialize;

/// A container, and what is known of the pod that it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Container {
    /// Its id: 64 hexadecimal digits with most runtimes, a name with LXC and systemd-nspawn.
    pub(crate) id: String,
    /// Who runs it, if the path tells: `docker`, `containerd`, `cri-o`, `podman`, …
    pub(crate) runtime: Option<&'static str>,
    /// Kubernetes' unique id of the pod.
    pub(crate) pod_uid: Option<String>,
    /// The pod's name, if the process's environment has it.
    pub(crate) pod: Option<String>,
    /// The pod's namespace, likewise.
    pub(crate) namespace: Option<String>,
}

impl Container {
    /// The container that a process is in; `None` if it is in none that is known.
    pub(crate) fn of(process: &ProcessInfo) -> Option<Self> {
        Self::in_cgroup(process.pid, &process.cgroup)
    }

    /// The same of a process of which no more is known than its number.
    pub(crate) fn of_pid(pid: u32) -> Option<Self> {
        Self::in_cgroup(pid, &capture::cgroup_of(pid)?)
    }

    /// For a record of the container's connections.
    pub(crate) fn as_record(&self) -> events::Container<'_> {
        fn text(text: &Option<String>) -> &[u8] {
            text.as_deref().unwrap_or_default().as_bytes()
        }

        events::Container {
            id: self.id.as_bytes(),
            runtime: self.runtime.unwrap_or_default().as_bytes(),
            pod_uid: text(&self.pod_uid),
            pod: text(&self.pod),
            namespace: text(&self.namespace),
        }
    }

    fn in_cgroup(pid: u32, cgroup: &Path) -> Option<Self> {
        let mut container = Self::of_cgroup(cgroup)?;
        if container.pod_uid.is_some() {
            let variable = |name| {
                let value = environment_variable(pid, name)?;
                Some(value.to_string_lossy().into_owned())
            };
            // Kubernetes sets HOSTNAME to the pod's name; the other two are a wide-spread custom.
            container.pod = variable("POD_NAME").or_else(|| variable("HOSTNAME"));
            container.namespace = variable("POD_NAMESPACE");
        }
        Some(container)
    }

    /// What a cgroup's path tells. The innermost container counts.
    fn of_cgroup(path: &Path) -> Option<Self> {
        let mut found = None;
        let mut pod_uid = None;
        let mut parent = "";
        for part in path.iter().filter_map(|part| part.to_str()) {
            if let Some(uid) = pod_uid_of(part) {
                pod_uid = Some(uid);
            } else if let Some((id, runtime)) = container_of(part, parent) {
                found = Some((id, runtime));
            }
            parent = part;
        }
        let (id, runtime) = found?;
        Some(Self {
            id,
            runtime,
            pod_uid,
            ..Self::default()
        })
    }

    /// Whether a user means this container: by its name, its id or the first digits of it.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        const SHORTEST: usize = 4;

        self.id == name
            || self.pod.as_deref() == Some(name)
            || self.pod_uid.as_deref() == Some(name)
            || (name.len() >= SHORTEST && is_hexadecimal(name) && self.id.starts_with(name))
    }

    /// As `docker ps` shows it.
    pub(crate) fn short_id(&self) -> &str {
        if self.id.len() == 64 && is_hexadecimal(&self.id) {
            &self.id[..12]
        } else {
            &self.id
        }
    }
}

/// `pod9b1f…` (cgroupfs driver) or `kubepods-burstable-pod9b1f_….slice` (systemd driver, which writes
/// `_` for `-`).
fn pod_uid_of(part: &str) -> Option<String> {
    let part = part.strip_suffix(".slice").unwrap_or(part);
    let (before, uid) = part.rsplit_once("pod")?;
    let uid = uid.replace('_', "-");
    let is_uid = uid.len() >= 32 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    let is_pod = before.is_empty() || before.starts_with("kubepods");
    (is_uid && is_pod).then_some(uid)
}

/// Names of scopes: `docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope`,
/// `libpod-ID.scope` (podman); of directories: `docker/ID`, `kubepods/…/podUID/ID`, `lxc/NAME`,
/// `lxc.payload.NAME`, `machine.slice/machine-NAME.scope` and `systemd-nspawn@NAME.service`.
fn container_of(part: &str, parent: &str) -> Option<(String, Option<&'static str>)> {
    const SCOPES: [(&str, &str); 4] = [
        ("docker-", "docker"),
        ("cri-containerd-", "containerd"),
        ("crio-", "cri-o"),
        ("libpod-", "podman"),
    ];

    let name = part.strip_suffix(".scope").unwrap_or(part);
    for (prefix, runtime) in SCOPES {
        if let Some(id) = name.strip_prefix(prefix).filter(|id| is_id(id)) {
            return Some((id.into(), Some(runtime)));
        }
    }
    // containerd with the systemd driver: `kubepods-….slice:cri-containerd:ID`.
    if let Some((_, id)) = name
        .rsplit_once(":cri-containerd:")
        .filter(|(_, id)| is_id(id))
    {
        return Some((id.into(), Some("containerd")));
    }
    if let Some(name) = part
        .strip_prefix("systemd-nspawn@")
        .and_then(|name| name.strip_suffix(".service"))
    {
        return Some((name.into(), Some("systemd-nspawn")));
    }
    if let Some(name) = part.strip_prefix("lxc.payload.") {
        return Some((name.into(), Some("lxc")));
    }
    match parent {
        "lxc" => Some((part.into(), Some("lxc"))),
        "docker" if is_id(part) => Some((part.into(), Some("docker"))),
        "machine.slice" => {
            let name = name.strip_prefix("machine-").filter(|_| part != name)?;
            Some((name.replace("\\x2d", "-"), Some("systemd-nspawn")))
        }
        _ if is_id(part) => Some((part.into(), None)),
        _ => None,
    }
}

/// 64 hexadecimal digits, as all OCI runtimes' managers make them.
fn is_id(text: &str) -> bool {
    text.len() == 64 && is_hexadecimal(text)
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f4e5a6b7c8d9e0f3f4e5a6b7c8d9e0f3f4e5a6b7c8d9e0f3f4e5a6b7c8d9e0f";
    const POD: &str = "9b1f2c3d-0000-4444-8888-0123456789ab";

    fn found(path: &str) -> Option<(String, Option<&'static str>, Option<String>)> {
        let path = path.replace("ID", ID).replace("POD", POD);
        let container = Container::of_cgroup(Path::new(&path))?;
        Some((container.id, container.runtime, container.pod_uid))
    }

    #[test]
    fn containers_of_all_runtimes_are_known_by_their_cgroup() {
        let pod_with_underscores = POD.replace('-', "_");
        let in_systemd_pod = |scope: &str| {
            format!("/kubepods.slice/kubepods-pod{pod_with_underscores}.slice/{scope}")
        };
        let cases = [
            (
                "/system.slice/docker-ID.scope".into(),
                Some("docker"),
                false,
            ),
            ("/docker/ID".into(), Some("docker"), false),
            ("/docker/ID/init".into(), Some("docker"), false),
            (
                "/machine.slice/libpod-ID.scope/container".into(),
                Some("podman"),
                false,
            ),
            ("/kubepods/burstable/podPOD/ID".into(), None, true),
            (
                in_systemd_pod("cri-containerd-ID.scope"),
                Some("containerd"),
                true,
            ),
            (in_systemd_pod("crio-ID.scope"), Some("cri-o"), true),
            (
                "/system.slice/x.slice:cri-containerd:ID".into(),
                Some("containerd"),
                false,
            ),
        ];
        for (path, runtime, in_pod) in cases {
            let expected = (ID.to_owned(), runtime, in_pod.then(|| POD.to_owned()));
            assert_eq!(found(&path), Some(expected), "{path}");
        }
        for (path, name) in [
            ("/lxc/web", "web"),
            ("/lxc.payload.web/init.scope", "web"),
            ("/machine.slice/systemd-nspawn@web.service/payload", "web"),
            ("/machine.slice/machine-my\\x2dweb.scope", "my-web"),
        ] {
            assert_eq!(
                found(path).map(|(id, ..)| id).as_deref(),
                Some(name),
                "{path}"
            );
        }
    }

    #[test]
    fn what_is_in_no_container_is_in_none() {
        for path in [
            "/",
            "/init.scope",
            "/system.slice/docker.service",
            "/user.slice/user-1000.slice/session-2.scope",
            "/system.slice/docker-short.scope",
            "/machine.slice",
        ] {
            assert_eq!(found(path), None, "{path}");
        }
    }

    #[test]
    fn containers_are_called_by_id_or_its_beginning_or_by_pod() {
        let container = Container {
            id: ID.into(),
            pod: Some("web-0".into()),
            ..Container::default()
        };
        assert!(container.is_called(ID));
        assert!(container.is_called(&ID[..12]));
        assert!(container.is_called("web-0"));
        assert!(!container.is_called("3f"));
        assert!(!container.is_called("4e5a"));
        assert_eq!(container.short_id(), &ID[..12]);
    }
}
