//! Names of users, as the local user database has them. Others (LDAP) are known by number only: asking
//! for their names would take the C library's plug-ins.

use std::collections::HashMap;
use std::fs;

const DATABASE: &str = "/etc/passwd";

/// The number of a user who is given by name or number.
pub(crate) fn uid(text: &str) -> Result<u32, String> {
    if let Ok(uid) = text.parse() {
        return Ok(uid);
    }
    let users = fs::read_to_string(DATABASE).map_err(|error| format!("{DATABASE}: {error}"))?;
    entries(&users)
        .find(|&(name, _)| name == text)
        .map(|(_, uid)| uid)
        .ok_or_else(|| format!("{DATABASE} has no such user; give the number"))
}

/// The names of all users, read once.
#[derive(Debug)]
pub(crate) struct UserNames(HashMap<u32, String>);

impl UserNames {
    pub(crate) fn read() -> Self {
        let users = fs::read_to_string(DATABASE).unwrap_or_default();
        let mut names = HashMap::new();
        for (name, uid) in entries(&users) {
            // The first one counts.
            names.entry(uid).or_insert_with(|| name.to_owned());
        }
        Self(names)
    }

    /// A user's name; the number if there is none.
    pub(crate) fn of(&self, uid: u32) -> String {
        self.0.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }
}

/// passwd(5): `name:password:UID:GID:…`
fn entries(users: &str) -> impl Iterator<Item = (&str, u32)> {
    users.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        Some((name, fields.nth(1)?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names_and_numbers() {
        assert_eq!(uid("root"), Ok(0));
        assert_eq!(uid("4294967294"), Ok(4_294_967_294));
        assert!(uid("no-such-user").unwrap_err().contains("no such user"));
        let names = UserNames::read();
        assert_eq!(names.of(0), "root");
        assert_eq!(names.of(4_294_967_294), "4294967294");
        assert_eq!(
            entries("broken:x\n:\n\nweb:x:33:34::/:/bin/false").collect::<Vec<_>>(),
            [("web", 33)]
        );
    }
}
