//! The name that a linker gives a program and its debug symbols (`--build-id`).

/// A build id: 40 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BuildId([u8; 40]);

impl BuildId {
    /// The build id of exactly 40 lower-case hexadecimal digits.
    pub fn parse(digits: &[u8]) -> Option<Self> {
        let digits: [u8; 40] = digits.try_into().ok()?;
        digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')).then_some(Self(digits))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("only ASCII was let in")
    }
}
