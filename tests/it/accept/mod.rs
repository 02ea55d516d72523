//! What the webhook's listener answers, to whom, what is durable before a 200, and what an overload, a stop or a renewed
//! certificate changes about that.

mod answers;
mod applications;
mod load_balancers;
mod overload;
mod refusals;
mod secret_rotation;
mod shutdown;
mod tls;
