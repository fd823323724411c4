//! Names of users, as the local user database has them. Others (LDAP) are known by number only: asking
//! for their names would take the C library's plug-ins.

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

/// A user's name; the number if there is none.
pub(crate) fn user_name(uid: u32) -> String {
    let users = fs::read_to_string(DATABASE).unwrap_or_default();
    entries(&users)
        .find(|&(_, found)| found == uid)
        .map_or_else(|| uid.to_string(), |(name, _)| name.to_owned())
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
        assert_eq!(user_name(0), "root");
        assert_eq!(user_name(4_294_967_294), "4294967294");
        assert_eq!(
            entries("broken:x\n:\n\nweb:x:33:34::/:/bin/false").collect::<Vec<_>>(),
            [("web", 33)]
        );
    }
}
