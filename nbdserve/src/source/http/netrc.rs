//! The netrc file: user names and passwords by host.
//!
//! The grammar is that of ftp(1), with the quoting that curl added: tokens between white space, a
//! token may be written in double quotes with backslash escapes, a line that starts with `#` is
//! a comment, `macdef` runs to the next empty line.

use super::address::Login;

/// The login for `host`: of the first `machine` entry of that name, else of `default`. Tokens
/// that mean nothing are skipped, as all readers of this file do.
pub(super) fn find(text: &str, host: &str) -> Option<Login> {
    let mut tokens = Tokens { rest: text };
    let mut entry = Entry::default();
    while let Some(token) = tokens.next() {
        match token.as_str() {
            "machine" | "default" => {
                if let Some(login) = entry.take() {
                    return Some(login);
                }
                let matches = token == "default" || tokens.next()?.eq_ignore_ascii_case(host);
                entry.wanted = matches;
            }
            "login" => entry.user = tokens.next(),
            "password" => entry.password = tokens.next(),
            "account" => drop(tokens.next()),
            "macdef" => tokens.skip_macro(),
            _ => {}
        }
    }
    entry.take()
}

#[derive(Default)]
struct Entry {
    wanted: bool,
    user: Option<String>,
    password: Option<String>,
}

impl Entry {
    /// What the entry says, if it is for our host and names a user; the next one starts empty.
    fn take(&mut self) -> Option<Login> {
        let entry = std::mem::take(self);
        let user = entry.user.filter(|_| entry.wanted)?;
        Some(Login {
            user,
            password: entry.password,
        })
    }
}

struct Tokens<'a> {
    rest: &'a str,
}

impl Tokens<'_> {
    fn next(&mut self) -> Option<String> {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                break;
            }
            self.rest = self.rest.split_once('\n')?.1;
        }
        if let Some(quoted) = self.rest.strip_prefix('"') {
            return Some(self.quoted(quoted.len()));
        }
        let end = self.rest.find(char::is_whitespace);
        let (token, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        (!token.is_empty()).then(|| token.to_owned())
    }

    /// The token whose opening quote stands `len` bytes before the end of the text.
    fn quoted(&mut self, len: usize) -> String {
        let text = &self.rest[self.rest.len() - len..];
        let mut token = String::new();
        let mut chars = text.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &text[at + 1..];
                    return token;
                }
                '\\' => match chars.next() {
                    Some((_, 'n')) => token.push('\n'),
                    Some((_, 'r')) => token.push('\r'),
                    Some((_, 't')) => token.push('\t'),
                    Some((_, other)) => token.push(other),
                    None => {}
                },
                other => token.push(other),
            }
        }
        self.rest = "";
        token
    }

    fn skip_macro(&mut self) {
        let end = self.rest.find("\n\n").unwrap_or(self.rest.len());
        self.rest = &self.rest[end..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, host: &str) -> Option<(String, Option<String>)> {
        find(text, host).map(|login| (login.user, login.password))
    }

    fn login(user: &str, password: &str) -> Option<(String, Option<String>)> {
        Some((user.to_owned(), Some(password.to_owned())))
    }

    #[test]
    fn the_entry_of_the_host_is_found() {
        let text = "# machine a login no password no\n\
            machine a login x password y\nmachine b\n\tlogin \"q \\\"u\" account z password p#1\n\
            macdef init\nmachine c login m password m\n\nmachine c login d password e\n\
            default login any password one";
        assert_eq!(found(text, "a"), login("x", "y"));
        assert_eq!(found(text, "B"), login("q \"u", "p#1"));
        assert_eq!(found(text, "c"), login("d", "e"));
        assert_eq!(found(text, "elsewhere"), login("any", "one"));
        assert_eq!(found("machine a password p", "a"), None);
        assert_eq!(
            found("machine a login x", "a"),
            Some(("x".to_owned(), None))
        );
    }

    #[test]
    fn unfinished_files_are_no_reason_to_panic() {
        for text in [
            "",
            "machine",
            "machine a",
            "machine a login",
            "\"",
            "\"\\",
            "#",
            "macdef",
        ] {
            assert_eq!(found(text, "a"), None, "{text}");
        }
    }
}
