//! The class of an answer's status, as metrics count it.

use hyper::StatusCode;

use crate::metrics::CodeClass::{self, ClientError, Informational, Redirection, ServerError, Successful};

/// The class of this status, if it has one.
pub fn of(status: StatusCode) -> Option<CodeClass> {
    let classes = [Informational, Successful, Redirection, ClientError, ServerError];
    classes.get(usize::from(status.as_u16() / 100).checked_sub(1)?).copied()
}
