//! `webhook get` and `webhook set`, from outside, against the platform that the tests play.
