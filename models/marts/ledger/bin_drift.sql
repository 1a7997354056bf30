-- One row per event token and field with bins: how far the numbers of training lie from
-- the bins that they are written in, as the share of rows that would have to move
-- between bins. 0 where the bins were fitted to these very rows.
with

bins as (

    select * from {{ ref('int_value_bins') }}

),

events as (

    {{ events_of_training() }}

),

counted as (

    select
        token_order,
        'number' as field,
        value_bin as bin,
        count(*) as row_count
    from events
    where value_bin is not null
    group by 1, 2, 3

    union all

    select
        token_order,
        'quantity' as field,
        quantity_bin as bin,
        count(*) as row_count
    from events
    where quantity_bin is not null
    group by 1, 2, 3

),

shares as (

    select
        bins.token_order,
        bins.field,
        bins.train_count,
        coalesce(counted.row_count, 0) as row_count,
        bins.train_count
        / cast(sum(bins.train_count) over in_token as double) as share_fitted,
        coalesce(
            counted.row_count
            / cast(sum(counted.row_count) over in_token as double),
            0
        ) as share_now
    from bins
    left join counted
        on
            bins.token_order = counted.token_order
            and bins.field = counted.field
            and bins.bin = counted.bin
    window in_token as (partition by bins.token_order, bins.field)

),

final as (

    select
        event_tokens.token as event_token,
        shares.field,
        cast(sum(shares.train_count) as bigint) as fitted_count,
        cast(sum(shares.row_count) as bigint) as train_count,
        sum(abs(shares.share_fitted - shares.share_now)) / 2 as drift
    from shares
    inner join {{ ref('int_event_tokens') }} as event_tokens
        on shares.token_order = event_tokens.token_order
    group by 1, 2

)

select * from final
order by drift desc, event_token asc, field asc
