//! The background plane: what makes and keeps the NAR cache, on one glommio executor that stands back behind everything else.
//!
//! Workers tell it what was asked for ([`Background::asked`]) and never wait for it. What it has made they read in the
//! catalog ([`crate::store::catalog`]). This is the only module that names glommio.

mod priority;
pub mod settings;
